"""Engines: what generates. `api` is the contract, `errors` its error tree, every other module an engine kind."""
