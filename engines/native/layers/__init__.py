"""Layers of the native models: attention, linear, embedding, normalization, rotary positions, activation."""
