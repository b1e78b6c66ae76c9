"""Counts of tokens beyond the room that the tables begin with."""

import numpy as np

from forerun.engine.penalties import TokenPenalties
from forerun.engine.sampling import SamplingParams


def test_any_number_of_different_tokens_is_counted():
    """The tables grow when an output token is the 65th, the 129th, ... of its kind."""
    params = SamplingParams(frequency_penalty=1.0)
    penalties = TokenPenalties(params, list(range(60)), None)
    output = [token for token in range(50, 200) for _ in range(2)]
    penalties.follow(output)
    row = np.zeros(256, np.float32)
    penalties.apply(row)
    np.testing.assert_array_equal(row, np.where((np.arange(256) >= 50) & (np.arange(256) < 200), -2.0, 0.0))
    penalties.follow(output[:101])
    row = np.zeros(256, np.float32)
    penalties.apply(row)
    assert (row.sum(), row[100]) == (-101.0, -1.0)
