"""Watermarks without tensors: which mark a request gets, the hash behind all of them, and their detection."""
