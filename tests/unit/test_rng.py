"""Decoding noise: a pure function of its key, the same for a part of the vocabulary as for the whole."""

import math

import numpy as np
import pytest

from forerun.core.rng import gumbel_argmax, gumbel_row, stream_key, uniform

MASK = 2**64 - 1
GOLDEN_UNIFORMS = [0.28096439727005207, 0.2051255913346398, 0.9110741187975292, 0.4729719892158587]
GOLDEN_GUMBELS = [-0.4263339340686798, -0.3133145570755005, -0.7011994123458862, 0.24788349866867065]


def plain_cell(key: int, counter: int) -> int:
    """SplitMix64 output number ``counter`` of ``key``, its upper 52 bits, in Python integers."""
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return (z ^ (z >> 31)) >> 12


def plain_gumbel(key: int, token_id: int) -> float:
    return -math.log(-math.log((plain_cell(key, token_id) + 0.5) * 2.0**-52))


def test_golden_values_keep_old_seeds_valid():
    assert [uniform(1, 0, 5, purpose) for purpose in ("draft", "accept", "residual", "sample")] == GOLDEN_UNIFORMS
    assert gumbel_row(1, 0, 5, 4).tolist() == GOLDEN_GUMBELS


def test_splitmix_bits_are_the_published_ones():
    # The first output of SplitMix64 seeded with 0, as its authors' C program prints it.
    assert plain_cell(0, 0) == 0xE220A8397B1DCDAF >> 12


def test_gumbel_row_equals_plain_formula():
    key = stream_key(7, 3, 11, "coupling")
    row = gumbel_row(7, 3, 11, 3000)
    np.testing.assert_allclose(row, [plain_gumbel(key, i) for i in range(3000)], rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 31, 1000, 49152])
def test_part_of_the_vocabulary_gets_the_same_values(size):
    row = gumbel_row(7, 3, 11, 49152)
    ids = np.sort(np.random.default_rng(size).choice(49152, size, replace=False)).astype(np.int64)
    assert np.array_equal(gumbel_row(7, 3, 11, ids), row[ids])
    assert np.array_equal(gumbel_row(7, 3, 11, size), row[:size])


def test_every_part_of_the_key_matters():
    keys = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1), (2, 1, 3)]
    assert len({uniform(*key, purpose) for key in keys for purpose in ("draft", "accept", "residual", "sample")}) == 24
    assert len({gumbel_row(*key, 1)[0] for key in keys}) == len(keys)


def test_seeds_are_taken_modulo_two_to_64():
    assert uniform(-1, 0, 0, "draft") == uniform(2**64 - 1, 0, 0, "draft")


@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0, 60.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_argmax_with_skipped_noise_equals_argmax_of_all(spread, dtype):
    generator = np.random.default_rng(0)
    for position in range(100):
        scores = (spread * generator.normal(size=2000)).astype(dtype)
        scores[generator.random(2000) < 0.3] = -np.inf
        ids = np.sort(generator.choice(49152, 2000, replace=False)).astype(np.int64)
        expected = int(np.argmax(scores.astype(np.float64) + gumbel_row(5, 1, position, ids)))
        assert gumbel_argmax(scores, ids=ids, seed=5, request=1, position=position) == expected
        expected = int(np.argmax(scores.astype(np.float64) + gumbel_row(5, 1, position, 2000)))
        assert gumbel_argmax(scores, ids=None, seed=5, request=1, position=position) == expected


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_argmax_refuses_broken_scores(broken):
    with pytest.raises(FloatingPointError, match="largest score"):
        gumbel_argmax(np.array([0.0, broken]), ids=None, seed=0, request=0, position=0)
    with pytest.raises(FloatingPointError, match="largest score"):
        gumbel_argmax(np.full(3, -np.inf), ids=None, seed=0, request=0, position=0)
