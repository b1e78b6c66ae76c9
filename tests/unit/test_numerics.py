"""Exponentials in whole units against their definition."""

import numpy as np
import pytest

from forerun.core.numerics import UNITS, exp_units, sum_exp_units


@pytest.mark.parametrize("size", [1, 15, 1025, 49152])
@pytest.mark.parametrize("spread", [0.0, 1.0, 10.0, 100.0])
def test_units_are_the_exponential_rounded_down(size, spread):
    scores = (spread * np.random.default_rng(size).normal(size=size)).astype(np.float32)
    scores[1::7] = -np.inf
    largest = float(scores.max())
    units = exp_units(scores, largest)
    expected = np.exp(scores.astype(np.float64) - largest) * UNITS
    assert units[scores == largest].tolist() == [UNITS] * int((scores == largest).sum())
    # The distance to the largest is rounded to float32: 6e-8 of up to 28 nats, where a unit is left.
    np.testing.assert_allclose(units, expected, rtol=2e-6, atol=1)
    assert sum_exp_units(scores, largest) == sum(units.tolist())
