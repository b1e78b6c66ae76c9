"""Certificates of byte-level language models."""
