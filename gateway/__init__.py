"""The gateway: HTTP in, HTTP out. Knows protocols only through adapters and engines only through `engines.api`."""
