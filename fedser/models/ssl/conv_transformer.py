"""wav2vec 2.0 (Baevski et al. 2020), HuBERT (Hsu et al. 2021) and WavLM (Chen et al. 2022), by way of `transformers`.

`transformers` takes seconds to import and is an extra: it is imported when such a backbone is made, and not before.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedser.errors import InputError, nearest
from fedser.models.layers import real_frames
from fedser.models.ssl import checkpoint
from fedser.models.ssl.backbone import Backbone
from fedser.models.ssl.spectra import RATE

log = logging.getLogger(__name__)

CLASSES = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}
# Whether waveforms are brought to mean 0 and deviation 1, as the published base models say in their folders.
NORMALISED = {"wav2vec2": True, "hubert": True, "wavlm": False}
# SpecAugment (its draws are NumPy's global ones), layer drop, and an adapter that would shorten the states.
OFF = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "apply_spec_augment": False, "layerdrop": 0.0,
       "add_adapter": False}  # fmt: skip


class ClipNorm(nn.GroupNorm):
    """Group norm over the first `frames` [B] of h [B, C, T] alone: over all, padding would change every state."""

    frames: Tensor | None = None

    def forward(self, h: Tensor) -> Tensor:
        counts = [h.shape[2]] if self.frames is None else self.frames.tolist()
        if set(counts) == {h.shape[2]}:
            return super().forward(h)
        clips = zip(h.split(1), counts, strict=True)
        return torch.cat([F.pad(super(ClipNorm, self).forward(x[..., :n]), (0, h.shape[2] - n)) for x, n in clips])


class ConvTransformer(Backbone):
    """Convolutions on the waveform (a frame of 25 ms every 20 ms), transformer layers; a state after each.

    Base models: 12 states of 768, 94 million weights. The convolutions are never trained. States are those of
    `transformers`, the last one behind the encoder's own layer norm where that comes last (large models).
    """

    unneeded = ("quantizer.", "project_q.", "project_hid.", "lm_head.", "masked_spec_embed", "adapter.",
                "projector.", "classifier.", "layer_weights")  # fmt: skip

    def __init__(self, name: str, do_normalize: bool | None = None, **config: Any):
        super().__init__()
        kind = CLASSES[name]
        made = getattr(_transformers(name), f"{kind}Config")
        known = made().to_dict()
        for key in config:
            if key not in known:
                raise InputError(f"model.config.{key}: {kind}Config has no such key{nearest(key, known, ', but {}')}.")
        config = made.from_dict(config | OFF)
        self.normalised = NORMALISED[name] if do_normalize is None else do_normalize
        self.count, self.width = config.num_hidden_layers, config.hidden_size
        self.strides = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.ends_in_norm = config.do_stable_layer_norm
        self.network = getattr(_transformers(name), f"{kind}Model")(config)
        if config.feat_extract_norm == "group":
            first = self.network.feature_extractor.conv_layers[0]
            first.layer_norm = ClipNorm(first.layer_norm.num_groups, first.layer_norm.num_channels)
        self.least = 1
        for kernel, stride in reversed(self.strides):
            self.least = (self.least - 1) * stride + kernel

    @staticmethod
    def read(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The settings and weights of a folder of `transformers`. Raises InputError for another model's."""
        config, heard = checkpoint.config(folder, name, name), checkpoint.preprocessor(folder)
        if heard.get("sampling_rate", RATE) != RATE:
            raise InputError(f"{folder} is for waveforms at {heard['sampling_rate']} Hz, not {RATE}.")
        known = getattr(_transformers(name), f"{CLASSES[name]}Config")().to_dict()
        normalise = heard.get("do_normalize")
        if normalise is None:
            words = "brought to mean 0 and deviation 1" if NORMALISED[name] else "taken as they are"
            log.warning("%s has no preprocessor_config.json: waveforms are %s, as for the base model.", folder, words)
        tensors = checkpoint.tensors(folder, (f"{name}.",))
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):  # the names of torch < 2.0
            tensors = {
                key.replace(f"conv.{old}", f"conv.parametrizations.weight.{new}"): tensors[key] for key in tensors
            }
        return {key: value for key, value in config.items() if key in known} | {"do_normalize": normalise}, tensors

    @property
    def body(self) -> nn.Module:
        return self.network

    def frames(self, samples: Tensor) -> Tensor:
        for kernel, stride in self.strides:
            samples = (samples - kernel) // stride + 1
        return samples

    def last(self) -> list[nn.Module]:
        encoder = self.network.encoder
        return [encoder.layers[-1], *([encoder.layer_norm] if self.ends_in_norm else [])]

    def never(self) -> list[nn.Module]:
        return [self.network.feature_extractor]  # in train mode it refuses inputs that are no leaves

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        real = real_frames(lengths, waveforms.shape[1])[:, 0]
        if self.normalised:
            waveforms = _normalised(waveforms, real, lengths[:, None])
        first = self.network.feature_extractor.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), ClipNorm):
            kernel, stride = self.strides[0]
            first.layer_norm.frames = (lengths - kernel) // stride + 1
        with warnings.catch_warnings():  # WavLM's masks are of two types: every pass would say so
            warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")
            found = self.network(waveforms, attention_mask=real.long(), output_hidden_states=True, return_dict=True)
        return torch.stack([*found.hidden_states[1:-1], found.last_hidden_state], 1)


def _normalised(waveforms: Tensor, real: Tensor, count: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over real samples, as Wav2Vec2FeatureExtractor; zeros stay behind."""
    waveforms = (waveforms - waveforms.sum(1, keepdim=True) / count) * real
    return waveforms * (waveforms.square().sum(1, keepdim=True) / count + 1e-7).rsqrt()


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"model.backbone={name} needs `transformers`: pip install '.[ssl]' ({error}).") from error
    return transformers
