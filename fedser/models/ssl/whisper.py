"""Whisper's encoder (Radford et al. 2022) for clips of any length up to 30 s, not of 30 s only."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedser.errors import InputError
from fedser.models.layers import real_frames
from fedser.models.ssl import checkpoint
from fedser.models.ssl.backbone import Backbone, attend, heard, sinusoids
from fedser.models.ssl.spectra import HOP, LEAST_WHISPER, whisper_mel

# width and layers; a head has 64 of the width, the inner layer four times as much
SIZES = {"whisper_tiny": (384, 4), "whisper_base": (512, 6), "whisper_small": (768, 12)}
KEYS = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins",
        "max_source_positions", "dropout", "attention_dropout", "activation_dropout")  # fmt: skip


class Attention(nn.Module):
    """Self-attention [B, T, width] → the same; keys have no bias."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, mask, dropout))


class Layer(nn.Module):
    """Attention and two fully connected layers, each with a layer norm before it; names are the checkpoints'."""

    def __init__(self, width: int, heads: int, inner: int, dropouts: tuple[float, float, float]):
        super().__init__()
        self.dropout, attention_dropout, self.inner_dropout = dropouts
        self.self_attn = Attention(width, heads, attention_dropout)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, width], mask [B, 1, 1, T] of real frames → the same shape."""
        x = x + F.dropout(self.self_attn(self.self_attn_layer_norm(x), mask), self.dropout, self.training)
        h = F.dropout(F.gelu(self.fc1(self.final_layer_norm(x))), self.inner_dropout, self.training)
        return x + F.dropout(self.fc2(h), self.dropout, self.training)


class Whisper(Backbone):
    """Log-Mels, two convolutions, transformer layers; a state after each, the last one normalised.

    8.2, 20.6 and 88.2 million weights (tiny, base, small). States equal those of `transformers` for a clip of 30 s;
    attention goes to real frames only, where the original hears the silence up to 30 s, too.
    """

    unneeded = ("model.decoder.", "decoder.", "proj_out.")
    prefixes = ("model.encoder.", "encoder.")
    least = LEAST_WHISPER

    def __init__(
        self,
        name: str = "whisper_tiny",
        d_model: int | None = None,
        encoder_layers: int | None = None,
        encoder_attention_heads: int | None = None,
        encoder_ffn_dim: int | None = None,
        num_mel_bins: int = 80,
        max_source_positions: int = 1500,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
    ):
        super().__init__()
        self.width, self.count = d_model or SIZES[name][0], encoder_layers or SIZES[name][1]
        self.most, self.mels, self.dropout = 2 * HOP * max_source_positions, num_mel_bins, dropout
        sizes = (self.width, encoder_attention_heads or self.width // 64, encoder_ffn_dim or 4 * self.width)
        self.conv1 = nn.Conv1d(num_mel_bins, self.width, 3, padding=1)
        self.conv2 = nn.Conv1d(self.width, self.width, 3, 2, padding=1)
        self.embed_positions = nn.Embedding.from_pretrained(_places(max_source_positions, self.width))
        dropouts = (dropout, attention_dropout, activation_dropout)
        self.layers = nn.ModuleList(Layer(*sizes, dropouts) for _ in range(self.count))
        self.layer_norm = nn.LayerNorm(self.width)

    @staticmethod
    def read(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The settings and weights of a folder of `transformers`. Raises InputError for another model's or size's."""
        config = checkpoint.config(folder, name, "whisper")
        if config.get("activation_function", "gelu") != "gelu":
            raise InputError(f"{folder}: a Whisper with {config['activation_function']} is not what fedser can run.")
        size = (config.get("d_model"), config.get("encoder_layers"))
        if size != SIZES[name] and size in SIZES.values():
            other = next(key for key, value in SIZES.items() if value == size)
            raise InputError(f"{folder} holds a {other}, where model.backbone={name} was asked for.")
        return {key: config[key] for key in KEYS if key in config}, checkpoint.tensors(folder, Whisper.prefixes)

    def frames(self, samples: Tensor) -> Tensor:
        return (samples // HOP + 1) // 2

    def last(self) -> list[nn.Module]:
        return [self.layers[-1], self.layer_norm]

    def never(self) -> list[nn.Module]:
        return [self.embed_positions]

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        count = (waveforms.shape[1] // HOP + 1) // 2
        h = F.gelu(self.conv1(whisper_mel(waveforms, self.mels, self.most // HOP)))
        h = F.gelu(self.conv2(h)).transpose(1, 2)[:, :count]
        h = F.dropout(h + self.embed_positions.weight[:count], self.dropout, self.training)
        mask, states = heard(real_frames(self.frames(lengths), count)), []
        for layer in self.layers:
            h = layer(h, mask)
            states.append(h)
        return torch.stack([*states[:-1], self.layer_norm(h)], 1)


def _places(frames: int, width: int) -> Tensor:
    """Sinusoidal positions [frames, width], sines first, then cosines."""
    rates = torch.exp(torch.arange(width // 2, dtype=torch.float64) * (-math.log(10_000) / (width // 2 - 1)))
    return torch.cat(sinusoids(frames, rates), 1)
