"""Numerical building blocks that models are made of."""
