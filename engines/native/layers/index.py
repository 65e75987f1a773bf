"""Which part of a checkpoint tensor is meant: a leaf, shared by layers, sources of weights and quantization."""

Index = tuple[slice, ...]
"""One slice for each dimension of a checkpoint tensor."""
