"""Speech backbones behind a small network: waveforms, or a frozen backbone's hidden states, in, logits out."""

from fedser.models.ssl.checkpoint import digest
from fedser.models.ssl.network import SSL

__all__ = ["SSL", "digest"]
