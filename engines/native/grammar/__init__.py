"""Structured output: which tokens a grammar allows next. Decides and remembers; tensors are the sampler's. No torch."""
