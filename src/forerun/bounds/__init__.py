"""Certificates: an upper bound on the error of a trained model, from how far it compresses."""
