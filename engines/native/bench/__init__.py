"""Measuring the engine without HTTP: what it does, and what the device it runs on would allow."""
