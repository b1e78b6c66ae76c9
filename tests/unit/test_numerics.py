"""Fused passes against their definition."""

import numpy as np
import pytest

from forerun.core.numerics import sum_exp


@pytest.mark.parametrize("size", [1, 15, 1024, 1025, 49152])
@pytest.mark.parametrize("spread", [0.0, 1.0, 10.0, 100.0])
def test_sum_exp(size, spread):
    scores = (spread * np.random.default_rng(size).normal(size=size)).astype(np.float32)
    scores[1::7] = -np.inf
    largest = float(scores.max())
    expected = np.exp(scores.astype(np.float64) - largest).sum()
    assert sum_exp(scores, largest) == pytest.approx(expected, rel=1e-5)
