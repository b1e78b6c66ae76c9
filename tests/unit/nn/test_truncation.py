"""Top-k, top-p and min-p by tensor operations: the host's cuts, bit for bit, ties and broken rows included."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.core.numerics import exp_units as host_units
from forerun.engine.logits import surviving_indices
from forerun.engine.sampling import SamplingParams
from forerun.nn.gumbel import select_tokens
from forerun.nn.truncation import Truncation, exp_units, truncation_cut


def truncation(*params: SamplingParams) -> Truncation:
    return Truncation(
        top_ks=torch.tensor([some.top_k for some in params]),
        top_ps=torch.tensor([some.top_p for some in params], dtype=torch.float64),
        log_min_ps=torch.tensor(
            [math.log(some.min_p) if some.min_p > 0 else -math.inf for some in params], dtype=torch.float64
        ),
    )


def kept(scores: np.ndarray, params: SamplingParams) -> list[int]:
    found = surviving_indices(scores, params)
    return list(range(len(scores))) if found is None else found.tolist()


@pytest.mark.parametrize("spread", [0.01, 3.0, 40.0])
def test_units_have_the_hosts_bits(spread):
    scores = spread * np.random.default_rng(3).standard_normal(40_000).astype(np.float32)
    scores[5::11] = -np.inf
    largest = scores.max()
    units = exp_units(torch.from_numpy(scores) - float(largest))
    np.testing.assert_array_equal(units.numpy(), host_units(scores, float(largest)))


@settings(max_examples=200, deadline=None)
@given(
    logits=st.lists(st.integers(-40, 40), min_size=1, max_size=30),
    divisor=st.sampled_from([1.0, 8.0, 7.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 100]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 1e-4, 0.1, 1.0]),
)
def test_what_is_kept_is_what_the_host_keeps(logits, divisor, top_k, top_p, min_p):
    """Whole logits, so that ties are common; a second row that keeps everything, in the same pass."""
    scores = np.array(logits, np.float32) / np.float32(divisor)
    params = SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)
    rows = torch.from_numpy(np.stack([scores, scores]))
    is_kept = rows >= truncation_cut(rows, truncation(params, SamplingParams()))
    assert np.flatnonzero(is_kept[0]).tolist() == kept(scores, params)
    assert bool(is_kept[1].all())


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0])
def test_large_rows_are_cut_at_the_same_token(temperature):
    """Where thousands of tokens lie near the cut, a sum that depends on its order would part here and there."""
    rng = np.random.default_rng(11)
    scores = (rng.standard_normal((6, 20_000)) * 2).astype(np.float32) / np.float32(temperature)
    params = [
        SamplingParams(top_p=0.95),
        SamplingParams(top_p=0.5, top_k=3000),
        SamplingParams(top_p=0.99999),
        SamplingParams(top_k=50, min_p=0.01),
        SamplingParams(min_p=1e-5),
        SamplingParams(top_p=0.3, min_p=0.2),
    ]
    is_kept = torch.from_numpy(scores) >= truncation_cut(torch.from_numpy(scores), truncation(*params))
    for row, own, some in zip(is_kept.numpy(), scores, params, strict=True):
        assert np.flatnonzero(row).tolist() == kept(own, some)


def test_equal_scores_are_kept_together():
    scores = torch.zeros(1, 9)
    for params in (SamplingParams(top_k=2), SamplingParams(top_p=0.4), SamplingParams(min_p=1.0)):
        assert bool((scores >= truncation_cut(scores, truncation(params))).all())


def test_a_broken_row_is_told_as_such_and_leaves_the_others_alone():
    logits = torch.tensor([[0.0, float("nan"), 1.0], [0.0, 9.0, 1.0]])
    chosen = select_tokens(
        logits,
        torch.ones(2, dtype=torch.float64),
        torch.zeros(2, dtype=torch.int64),
        torch.tensor([4, 6, 8]),
        has_noise=True,
        truncation=truncation(*[SamplingParams(top_p=0.5)] * 2),
    )
    assert chosen.tolist() == [-1, 6]
