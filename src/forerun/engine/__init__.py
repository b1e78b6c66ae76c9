"""Exact decoding of language models: autoregressive, speculative, and speculative-speculative."""
