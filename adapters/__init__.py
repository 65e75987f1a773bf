"""Adapters: one file per wire protocol, translating between its JSON and `engines.api`. They never open a socket."""
