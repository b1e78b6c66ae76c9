"""Noise and choice of tokens by tensor operations, against the streams of the host."""

import numpy as np
import pytest
import torch

from forerun.core.rng import gumbel_argmax, gumbel_row, stream_key
from forerun.core.selection import Choice, Selection
from forerun.nn.gumbel import gumbel_noise, select_tokens

KEYS = [(0, 0, 0), (5, 2, 77), (2**64 - 1, 9, 4095), (1 << 63, 0, 1)]


def keys_of(streams) -> torch.Tensor:
    words = [stream_key(seed, request, position, "coupling") for seed, request, position in streams]
    return torch.from_numpy(np.array(words, np.uint64).view(np.int64))


def test_noise_has_the_bits_of_the_hosts():
    noise = gumbel_noise(keys_of(KEYS), torch.arange(8000))
    assert noise.dtype == torch.float32
    for row, stream in zip(noise, KEYS, strict=True):
        np.testing.assert_array_equal(row.numpy(), gumbel_row(*stream, 8000))


def test_a_part_of_the_vocabulary_gets_the_noise_of_its_ids():
    ids = np.array([0, 7, 123, 49_151])
    noise = gumbel_noise(keys_of(KEYS), torch.from_numpy(ids))
    for row, stream in zip(noise, KEYS, strict=True):
        np.testing.assert_array_equal(row.numpy(), gumbel_row(*stream, ids))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_tokens_with_temperature_are_those_of_shared_noise(temperature):
    logits = 3 * torch.randn(len(KEYS), 3000, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(10, 3010)
    chosen = select_tokens(
        logits, torch.full((len(KEYS),), temperature, dtype=torch.float64), keys_of(KEYS), ids, has_noise=True
    )
    for row, token, (seed, request, position) in zip(logits.numpy(), chosen.tolist(), KEYS, strict=True):
        scores = row / np.float32(temperature)
        column = gumbel_argmax(scores, ids=ids.numpy(), seed=seed, request=request, position=position)
        assert token == 10 + column


def test_greedy_rows_beside_noisy_ones_take_the_first_of_the_largest():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0]]).repeat(2, 1)
    ids = torch.tensor([3, 5, 8, 9])
    temperatures = torch.tensor([0.0, 1.0], dtype=torch.float64)
    keys = keys_of([(0, 0, 0), (1, 0, 0)])
    chosen = select_tokens(logits, temperatures, keys, ids, has_noise=True).tolist()
    assert chosen[0] == 5
    assert select_tokens(logits[:1], temperatures[:1], keys[:1], ids, has_noise=False).tolist() == [5]
    column = gumbel_argmax(logits[1].numpy(), ids=ids.numpy(), seed=1, request=0, position=0)
    assert chosen[1] == ids[column]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("has_noise", [False, True])
def test_a_row_without_a_finite_largest_logit_says_so(broken, has_noise):
    logits = torch.tensor([[0.0, broken], [-torch.inf, 1.0], [-torch.inf, -torch.inf]])
    temperatures = torch.full((3,), float(has_noise), dtype=torch.float64)
    chosen = select_tokens(logits, temperatures, keys_of(KEYS[:3]), torch.tensor([4, 6]), has_noise=has_noise)
    assert chosen.tolist() == [-1, 6, -1]


def test_keys_of_positions_follow_each_other_and_are_absent_where_greedy():
    greedy, noisy = (Choice(temperature=temperature, seed=3, request=1, top_k=4) for temperature in (0.0, 0.5))
    keys = noisy.keys(first_position=10, num_positions=3)
    expected = [stream_key(3, 1, position, "coupling") for position in (10, 11, 12)]
    assert keys.view(np.uint64).tolist() == expected
    selection = Selection.of_positions([(greedy, 10, 2), (noisy, 10, 3)])
    assert selection.arrays["temperatures"].tolist() == [0, 0, 0.5, 0.5, 0.5]
    assert selection.arrays["keys"].tolist() == [0, 0, *keys.tolist()]
    assert selection.arrays["top_ks"].tolist() == [0, 0, 4, 4, 4]
    assert selection.has_noise
    assert selection.truncates
    alone = Selection.of_positions([(greedy, 10, 2)])
    assert not alone.has_noise
    assert alone.needed.keys() == {"temperatures", "keys"}
