"""The command line's parts. Only they and `gateway/__main__.py` wire settings, engines and application together."""
