"""Kernels: numba on CPU, Triton on CUDA, and in `reference.py` the plain PyTorch twin of each."""
