"""Speech backbones behind a small network: waveforms, or a frozen backbone's hidden states, in, logits out."""

from fedser.models.ssl.network import SSL

__all__ = ["SSL"]
