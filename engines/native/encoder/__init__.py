"""Encoders (BERT and its kin) behind the same socket as decoders: a core of their own, for nothing is generated."""
