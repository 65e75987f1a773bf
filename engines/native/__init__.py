"""The native engine: continuous batching over a paged KV cache, in our own processes, on CPU or GPU."""
