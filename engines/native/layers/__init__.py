"""Layers of the native models: attention, gated MLP, linear, embedding, normalization, rotary positions."""
