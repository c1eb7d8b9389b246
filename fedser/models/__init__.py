"""Neural networks: logits out, any input size."""
