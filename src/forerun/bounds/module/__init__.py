"""Certificates of classifiers that any module computes: its parameters in a random subspace, its start from a seed."""
