"""Tensor parallelism: one process per rank, rank 0 decides, the others do the same steps with their part of the model.

Importing this package imports no torch; `group`, `all_reduce` and `follower` do.
"""
