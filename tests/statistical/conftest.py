"""Pearson's chi-square test, shared by the statistical tests."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

ALPHA = 1e-4
"""False-alarm probability of each chi-square test. Seeds are fixed, so a test that passed goes on to pass."""


def chi_square_p_value(counts: np.ndarray, probs: np.ndarray) -> float:
    """Return the chance of counts at least as far from ``probs``; a count where the probability is 0 gives 0."""
    counts, probs = np.asarray(counts, np.float64).ravel(), np.asarray(probs, np.float64).ravel()
    if counts[probs == 0].any():
        return 0.0
    expected = counts.sum() * probs[probs > 0]
    assert expected.min() >= 5, f"smallest expected count {expected.min():.2f}: draw more, or merge cells"
    statistic = ((counts[probs > 0] - expected) ** 2 / expected).sum()
    half_degrees = torch.tensor((expected.size - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half_degrees, torch.tensor(statistic / 2, dtype=torch.float64)))


@pytest.fixture
def assert_law() -> Callable[..., None]:
    """A function that fails unless counts look drawn from a law; the message names what is needed to replay."""

    def check(counts: np.ndarray, probs: np.ndarray, *, seed: int) -> None:
        p_value = chi_square_p_value(counts, probs)
        assert p_value > ALPHA, f"seed {seed}: p-value {p_value:.2g}, counts {np.asarray(counts).ravel().tolist()}"

    return check


@pytest.fixture
def assert_not_law() -> Callable[..., None]:
    """A function that fails unless the same test rejects the law: the negative control."""

    def check(counts: np.ndarray, probs: np.ndarray) -> None:
        p_value = chi_square_p_value(counts, probs)
        assert p_value < ALPHA, f"a wrong law passed with p-value {p_value:.2g}: the test lacks power"

    return check
