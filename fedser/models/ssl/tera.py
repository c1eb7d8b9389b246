"""TERA: a transformer on log-Mels, pretrained to undo alterations (Liu et al. 2021), as s3prl's checkpoints have it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedser.errors import InputError
from fedser.models.layers import real_frames
from fedser.models.ssl import checkpoint
from fedser.models.ssl.backbone import Backbone, attend, heard, sinusoids
from fedser.models.ssl.spectra import LEAST_TERA, MELS, tera_frames, tera_mel

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_dropout_prob")
PLAIN = {"share_layer": False, "pre_layer_norm": False, "hidden_act": "gelu", "downsample_rate": 1}
EPS = 1e-12  # of layer norm


def _linear(inputs: int, outputs: int, name: str = "dense") -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(inputs, outputs), "LayerNorm": nn.LayerNorm(outputs, EPS)})


class Layer(nn.Module):
    """Attention and two fully connected layers, each with its layer norm after it; names are the checkpoints'."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        projections = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": projections, "output": _linear(width, width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = _linear(inner, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, width], mask [B, 1, 1, T] of real frames → the same shape."""
        dropout = self.dropout if self.training else 0.0
        q, k, v = (projection(x) for projection in self.attention["self"].values())
        x = self._joined(self.attention["output"], attend(q, k, v, self.heads, mask, dropout), x)
        return self._joined(self.output, F.gelu(self.intermediate["dense"](x)), x)

    def _joined(self, output: nn.ModuleDict, h: Tensor, x: Tensor) -> Tensor:
        return output["LayerNorm"](F.dropout(output["dense"](h), self.dropout, self.training) + x)


class TERA(Backbone):
    """Log-Mels, three transformer layers with sinusoidal positions; a state before them and after each. 21.3 million
    weights. Clips are not cut into pieces, as s3prl does beyond the length of pretraining."""

    least = LEAST_TERA

    def __init__(
        self,
        name: str = "tera",
        hidden_size: int = 768,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_dropout_prob: float = 0.1,
    ):
        super().__init__()
        self.count, self.width, self.dropout = num_hidden_layers + 1, hidden_size, hidden_dropout_prob
        self.input_representations = _linear(MELS, hidden_size, "spec_transform")
        sizes = (hidden_size, num_attention_heads, intermediate_size, hidden_dropout_prob)
        layers = nn.ModuleList(Layer(*sizes) for _ in range(num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})

    @staticmethod
    def read(file: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The settings and weights of s3prl's file. Raises InputError for another's."""
        content = checkpoint.s3prl(file, "tera")
        settings = (
            content["Config"] if "transformer" in content.get("Config", {}) else content.get("Upstream_Config", {})
        )
        sizes = settings.get("transformer", {})
        wrong = {key: sizes[key] for key, value in PLAIN.items() if sizes.get(key, value) != value}
        if wrong or "kaldi" in settings.get("audio", {}):
            raise InputError(f"{file}: a TERA of {wrong or 'Kaldi features'} is not what fedser can run.")
        renamed = {
            key.replace("gamma", "weight").replace("beta", "bias"): value
            for key, value in content["Transformer"].items()
        }
        return {key: sizes[key] for key in SIZES if key in sizes}, renamed

    def frames(self, samples: Tensor) -> Tensor:
        return tera_frames(samples)

    def last(self) -> list[nn.Module]:
        return [self.encoder["layer"][-1]]

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        x = tera_mel(waveforms, lengths)
        mask = heard(real_frames(tera_frames(lengths), x.shape[1]))
        x = self.input_representations["spec_transform"](x) + self._places(x.shape[1], x.device)
        states = [F.dropout(self.input_representations["LayerNorm"](x), self.dropout, self.training)]
        for layer in self.encoder["layer"]:
            states.append(layer(states[-1], mask))
        return torch.stack(states, 1)

    def _places(self, frames: int, device: torch.device) -> Tensor:
        """Sinusoidal positions [frames, width], sines and cosines by turns."""
        even = torch.arange(0, self.width, 2, dtype=torch.float64, device=device)
        return torch.stack(sinusoids(frames, 10_000 ** (-even / self.width)), 2).flatten(1)
