"""Choosing tokens on the device: parameters per row, logits processors, the draw, log-probabilities."""
