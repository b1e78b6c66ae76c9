"""Are the streams uniform and independent, above all for the small, similar keys that engines use?

Each check has a false-alarm probability of 1e-4.
"""

import numpy as np
import pytest

from forerun.core.rng import gumbel_argmax, gumbel_row, uniform

pytestmark = pytest.mark.statistical
NUM = 40_000


def pair_counts(first: np.ndarray, second: np.ndarray, cells: int = 16) -> np.ndarray:
    return np.histogram2d(first, second, bins=cells, range=[[0, 1], [0, 1]])[0]


@pytest.mark.parametrize("purpose", ["draft", "accept", "residual", "sample"])
def test_uniforms_are_uniform_over_positions(purpose, assert_law):
    values = np.array([uniform(0, 0, position, purpose) for position in range(NUM)])
    assert_law(np.histogram(values, bins=256, range=(0, 1))[0], np.full(256, 1 / 256), seed=0)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("next position", lambda t: (0, 0, t + 1, "accept")),
        ("next request", lambda t: (0, 1, t, "accept")),
        ("next seed", lambda t: (1, 0, t, "accept")),
        ("request and position swapped", lambda t: (0, t, 0, "accept")),
        ("draft of the same position", lambda t: (0, 0, t, "draft")),
        ("residual of the same position", lambda t: (0, 0, t, "residual")),
        ("sample of the next position", lambda t: (0, 0, t + 1, "sample")),
    ],
)
def test_related_uniforms_are_independent(name, key, assert_law):
    first = np.array([uniform(0, 0, t, "accept") for t in range(1, NUM)])
    second = np.array([uniform(*key(t)) for t in range(1, NUM)])
    assert_law(pair_counts(first, second), np.full((16, 16), 1 / 256), seed=0)


def test_gumbel_noise_has_the_gumbel_law_over_ids_and_over_positions(assert_law):
    over_ids = np.exp(-np.exp(-gumbel_row(0, 0, 0, 10 * NUM).astype(np.float64)))
    over_positions = np.array([gumbel_row(0, 0, t, np.array([17]))[0] for t in range(NUM)], np.float64)
    assert_law(np.histogram(over_ids, bins=256, range=(0, 1))[0], np.full(256, 1 / 256), seed=0)
    values = np.exp(-np.exp(-over_positions))
    assert_law(np.histogram(values, bins=256, range=(0, 1))[0], np.full(256, 1 / 256), seed=0)


def test_upper_tail_of_the_noise_is_exponential(assert_law):
    # Rare tokens win by the tail: P(g > x) is about exp(-x). One row of 4 million ids sees x = 12 about 24 times.
    noise = gumbel_row(3, 0, 0, 4_000_000).astype(np.float64)
    edges = np.array([-np.inf, 4, 6, 8, 10, 12, np.inf])
    cumulative = np.exp(-np.exp(-edges))
    assert_law(np.histogram(noise, bins=edges)[0], np.diff(cumulative), seed=3)


@pytest.mark.parametrize("lag", [1, 2, 64])
def test_noise_of_nearby_ids_and_positions_is_independent(lag, assert_law):
    row = np.exp(-np.exp(-gumbel_row(0, 0, 9, NUM + lag).astype(np.float64)))
    other = np.exp(-np.exp(-gumbel_row(0, 0, 9 + lag, NUM).astype(np.float64)))
    assert_law(pair_counts(row[:NUM], row[lag:]), np.full((16, 16), 1 / 256), seed=0)
    assert_law(pair_counts(row[:NUM], other), np.full((16, 16), 1 / 256), seed=0)


def test_argmax_draws_from_the_softmax(assert_law, assert_not_law):
    probs = np.array([0.5, 0.25, 0.15, 0.07, 0.02, 0.01])
    scores = np.log(probs).astype(np.float32)
    draws = [gumbel_argmax(scores, ids=None, seed=1, request=0, position=t) for t in range(NUM)]
    counts = np.bincount(draws, minlength=6)
    assert_law(counts, probs, seed=1)
    assert_not_law(counts, np.array([0.52, 0.23, 0.15, 0.07, 0.02, 0.01]))


def test_draws_at_consecutive_positions_are_independent(assert_law):
    probs = np.array([0.6, 0.3, 0.1])
    scores = np.log(probs)
    draws = [gumbel_argmax(scores, ids=None, seed=2, request=0, position=t) for t in range(2 * NUM)]
    counts = np.zeros((3, 3))
    np.add.at(counts, (draws[0::2], draws[1::2]), 1)
    assert_law(counts, np.outer(probs, probs), seed=2)
