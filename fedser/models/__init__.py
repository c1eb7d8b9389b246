"""Neural networks: x [B, 1, T, F] in, logits [B, classes] out, any input size."""
