"""Settings: a leaf that imports nothing of ours."""
