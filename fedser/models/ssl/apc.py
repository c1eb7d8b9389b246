"""APC: autoregressive predictive coding (Chung et al. 2019), as s3prl's checkpoints have it."""

import contextlib
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedser.errors import InputError
from fedser.models.ssl import checkpoint
from fedser.models.ssl.backbone import Backbone
from fedser.models.ssl.spectra import LEAST_KALDI, MELS, kaldi_fbank, kaldi_frames

AUDIO = {"feat_type": "fbank", "feat_dim": MELS, "frame_length": 25, "frame_shift": 10, "cmvn": True}


class APC(Backbone):
    """Kaldi's filter bank, unidirectional GRUs with residuals; a state after each. 4.1 million weights.

    It sees no future frame, so that padding changes no real state.
    """

    unneeded = ("postnet.",)  # predicts frames
    least = LEAST_KALDI

    def __init__(
        self,
        name: str = "apc",
        hidden_size: int = 512,
        num_layers: int = 3,
        dropout: float = 0.1,
        residual: bool = True,
    ):
        super().__init__()
        self.count, self.width, self.dropout, self.residual = num_layers, hidden_size, dropout, residual
        sizes = [MELS] + [hidden_size] * num_layers
        layers = (nn.GRU(inputs, size, batch_first=True) for inputs, size in itertools.pairwise(sizes))
        self.rnn_layers = nn.ModuleList(layers)

    @staticmethod
    def read(file: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The settings and weights of s3prl's file. Raises InputError for another's."""
        content = checkpoint.s3prl(file, "apc")
        audio, sizes = (
            content["config"].get(part, {}).get(key, {}) for part, key in (("data", "audio"), ("model", "paras"))
        )
        wrong = {key: value for key, value in audio.items() if value != AUDIO.get(key, value)}
        if wrong or "vq" in sizes:
            raise InputError(f"{file}: an APC of {wrong or 'quantised states (vq)'} is not what fedser can run.")
        return dict(sizes), content["model"]

    def frames(self, samples: Tensor) -> Tensor:
        return kaldi_frames(samples)

    def last(self) -> list[nn.Module]:
        return [self.rnn_layers[-1]]

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        x, states = kaldi_fbank(waveforms, lengths), []
        for place, layer in enumerate(self.rnn_layers):
            with _differentiable(layer, x):
                h = layer(x)[0]
            h = F.dropout(h, self.dropout, layer.training)
            x = h + x if self.residual and place else h
            states.append(x)
        return torch.stack(states, 1)


def _differentiable(layer: nn.GRU, x: Tensor) -> contextlib.AbstractContextManager:
    """cuDNN has gradients of recurrent layers in train mode only, and attacks need them in eval mode."""
    needed = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *layer.parameters()))
    plain = needed and x.device.type == "cuda" and not layer.training
    return torch.backends.cudnn.flags(enabled=False) if plain else contextlib.nullcontext()
