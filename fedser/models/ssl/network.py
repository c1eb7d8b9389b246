"""A network on a pretrained speech backbone, frozen or not (Trust-SER, Feng et al. 2023)."""

import functools
import logging
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedser.config.schema import Count, Share, Whole
from fedser.errors import InputError
from fedser.models.ssl import checkpoint as files
from fedser.models.ssl.apc import APC
from fedser.models.ssl.backbone import Backbone, Tune
from fedser.models.ssl.conv_transformer import ConvTransformer
from fedser.models.ssl.head import Head, Pooling
from fedser.models.ssl.tera import TERA
from fedser.models.ssl.whisper import Whisper
from fedser.randomness import derive, torch_seeded
from fedser.runs.files import content_digest

log = logging.getLogger(__name__)

Name = Literal["wav2vec2", "hubert", "wavlm", "whisper_tiny", "whisper_base", "whisper_small", "apc", "tera"]


class SSL(nn.Module):
    """A backbone's hidden states, their weighted sum, pointwise convolutions, pooling over time, two fully connected
    layers.

    x is one of
    - waveforms [B, 1, samples, 1] at 16 kHz, full scale ±1, of which the first `lengths` [B] samples are real;
    - states [B, L, frames, width] that `states` gave before, of which the first `lengths` [B] frames are real;
    - their means over real frames [B, L, 1, width], lengths 1, which do as well where `pools` is true.

    backbone, checkpoint: the network, and the local path of its weights: a folder as `save_pretrained` of
        `transformers` makes it; for apc and tera a file of s3prl's. Without it, weights are random: they derive from
        `seed` alone, so that every worker has the same, with sizes changed by `config`, in the checkpoint's words.
    tune: which of the backbone's parts are trained, none ("frozen"), its last layer, or all but the convolutions on
        the waveform. The rest stays in eval mode, and has no gradient.

    Attributes that need no pass: `layers` (L), `width`, `least` and `most`, the samples that a clip must and may
    have (None: any number), `pools`, whether means of states suffice.

    Raises InputError for a checkpoint that is not there or is another network's.
    """

    def __init__(
        self,
        classes: int,
        backbone: Name,
        checkpoint: str | None = None,
        tune: Tune = "frozen",
        hidden: Count = 256,
        conv_layers: Whole = 2,
        pooling: Pooling = "mean",
        dropout: Share = 0.2,
        seed: Whole = 0,
        config: dict | None = None,
    ):
        super().__init__()
        self.backbone = _built(backbone, checkpoint, seed, config)
        self.backbone.tune(tune)
        self.tune, self.layers, self.width = tune, self.backbone.count, self.backbone.width
        self.least, self.most = self.backbone.least, self.backbone.most
        weights = content_digest(checkpoint) if checkpoint else {"seed": seed, "config": config}
        self.origin = {"backbone": backbone, "weights": weights}  # all that decides the states
        self.pools = conv_layers == 0 and pooling == "mean"  # both sums are linear: their order does not matter
        self.head = Head(self.backbone.count, self.backbone.width, hidden, conv_layers, pooling, dropout)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, classes)

    @staticmethod
    def check_options(node: dict, key: str) -> None:
        """Raises InputError for sizes beside a checkpoint, which has its own."""
        if node.get("checkpoint") is not None and node.get("config"):
            raise InputError(f"{key}.config is for random weights: {key}.checkpoint has sizes of its own.")

    @property
    def frozen(self) -> bool:
        """Whether nothing of the backbone is trained, so that states need be computed only once."""
        return self.tune == "frozen"

    def frames(self, samples: Tensor) -> Tensor:
        """How many states there are of clips of so many samples [B]."""
        return self.backbone.frames(samples)

    def states(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms [B, 1, samples, 1] and real samples [B] → states [B, L, frames, width] and real frames [B].

        Differentiable, whatever is trained. States behind the real ones mean nothing. Raises InputError where a clip is
        shorter than `least` or longer than `most`.
        """
        shortest, longest = (int(limit) for limit in lengths.aminmax())
        most = min(x.shape[2], self.most or x.shape[2])
        if shortest < self.least or longest > most:
            raise InputError(
                f"Clips have {shortest} to {longest} samples, where {type(self.backbone).__name__} takes "
                f"{self.least} to {most}."
            )
        waveforms = x[:, 0, :longest, 0]
        real = torch.arange(longest, device=x.device) < lengths[:, None]
        return self.backbone(waveforms * real, lengths), self.backbone.frames(lengths)

    def embed(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x, waveforms or states, of which so many steps [B] are real -> the input of the last layer [B, hidden]."""
        if x.shape[3] == 1:
            x, lengths = self.states(x, lengths)
        elif x.shape[3] != self.width:
            raise InputError("it listens to waveforms: set features=waveform")
        return self.head(x, lengths)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x, waveforms or states, of which so many steps [B] are real -> logits [B, classes]."""
        return self.fc(self.dropout(self.embed(x, lengths)))


def _built(name: Name, path: str | None, seed: int, config: dict[str, Any] | None) -> Backbone:
    """The backbone, with a checkpoint's weights or random ones; torch's generator is as it was before."""
    kinds = {"apc": APC, "tera": TERA, "whisper_tiny": Whisper, "whisper_base": Whisper, "whisper_small": Whisper}
    kind = kinds.get(name, ConvTransformer)
    place = None if path is None else Path(path).expanduser()
    settings, weights = (config or {}, None) if place is None else kind.read(place, name)
    with torch_seeded(derive(seed, "backbone"), torch.device("cpu")):
        made = kind(name, **settings)
    if weights is None:
        _warn(name)
    else:
        files.fill(made.body, weights, place, kind.unneeded)
    return made


@functools.cache  # once a process
def _warn(name: str) -> None:
    log.warning("model.backbone=%s has RANDOM weights, for want of a model.checkpoint: not fit for results.", name)
