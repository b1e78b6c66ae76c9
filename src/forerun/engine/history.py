"""Histories of tokens that are followed step by step: forwards as tokens come, back where a draft was rejected."""

from collections.abc import Sequence


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two histories share from their start."""
    shortest = min(len(first), len(second))
    if list(first[:shortest]) == list(second[:shortest]):
        return shortest
    return next(i for i in range(shortest) if first[i] != second[i])
