"""Branch budgets: exact sums, the paper's law as a special case, and near the best that whole numbers allow."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.core.errors import ConfigError
from forerun.engine.speculative.fan_out import (
    geometric_fan_out,
    joint_outcomes,
    measured_fan_out,
    shared_outcomes,
    uniform_fan_out,
)

weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=12)


def expected_hits(fan_out, probs, exponent):
    return sum(p * (1 - f**-exponent) for p, f in zip(probs, fan_out, strict=True) if f > 0)


@given(st.integers(0, 200), weights, st.floats(0.1, 4))
def test_budget_is_met_and_shares_are_rounded_by_less_than_one(budget, accepted_weights, exponent):
    counts = measured_fan_out(budget=budget, accepted_weights=accepted_weights, exponent=exponent)
    assert sum(counts) == budget
    if max(accepted_weights) > 0:
        shares = [w ** (1 / (1 + exponent)) for w in accepted_weights]
        for count, share in zip(counts, shares, strict=True):
            assert abs(count - budget * share / sum(shares)) < 1 + 1e-9
            assert share > 0 or count == 0


@given(st.integers(0, 100), st.integers(0, 9))
def test_uniform(budget, num_speculative_tokens):
    counts = uniform_fan_out(budget=budget, num_speculative_tokens=num_speculative_tokens)
    assert len(counts) == num_speculative_tokens + 1
    assert sum(counts) == budget
    assert max(counts) - min(counts) <= 1


@given(st.integers(1, 60), st.integers(0, 8), st.floats(0.05, 0.95), st.floats(0.2, 3))
def test_geometric_is_theorem_12(budget, num_speculative_tokens, a, r):
    # F_k = F_0 a^(k/(1+r)) for k < K, and F_K = F_0 a^(K/(1+r)) (1-a)^(-1/(1+r)), scaled to the budget.
    K = num_speculative_tokens
    shares = [a ** (k / (1 + r)) for k in range(K)] + [a ** (K / (1 + r)) * (1 - a) ** (-1 / (1 + r))]
    counts = geometric_fan_out(budget=budget, num_speculative_tokens=K, acceptance_rate=a, exponent=r)
    assert sum(counts) == budget
    assert all(abs(c - budget * s / sum(shares)) < 1 + 1e-9 for c, s in zip(counts, shares, strict=True))


def test_worked_example_of_the_reproduction():
    # Accepted lengths measured on a Llama pair: a peak at 0 and a larger one at K.
    seen = [0.13, 0.094, 0.070, 0.058, 0.048, 0.042, 0.035, 0.523]
    assert measured_fan_out(budget=24, accepted_weights=seen, exponent=1.0) == (3, 3, 3, 2, 2, 2, 2, 7)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("probs", [(0.3, 0.2, 0.5), (0.05, 0.05, 0.9), (1 / 3, 1 / 3, 1 / 3), (0.7, 0.2, 0.1)])
def test_measured_law_against_every_allocation(probs, exponent):
    budget = 18
    allocations = [f for f in itertools.product(range(1, budget), repeat=3) if sum(f) == budget]
    best = max(expected_hits(f, probs, exponent) for f in allocations)
    shares = [p ** (1 / (1 + exponent)) for p in probs]
    real_valued = expected_hits([budget * s / sum(shares) for s in shares], probs, exponent)
    assert real_valued >= best - 1e-12, "an allocation beats the claimed optimum"
    rounded = measured_fan_out(budget=budget, accepted_weights=probs, exponent=exponent)
    assert expected_hits(rounded, probs, exponent) >= best - 0.005


def test_nothing_seen_is_uniform():
    assert measured_fan_out(budget=7, accepted_weights=[0, 0, 0], exponent=1.0) == (3, 2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: uniform_fan_out(budget=-1, num_speculative_tokens=2), "branch_budget=-1"),
        (lambda: measured_fan_out(budget=1, accepted_weights=[], exponent=1.0), "accepted_weights"),
        (lambda: measured_fan_out(budget=1, accepted_weights=[-1.0], exponent=1.0), "accepted_weights"),
        (lambda: measured_fan_out(budget=1, accepted_weights=[1.0], exponent=0.0), "fan_out_exponent=0.0"),
        (
            lambda: geometric_fan_out(budget=1, num_speculative_tokens=1, acceptance_rate=1.0, exponent=1.0),
            "expected_acceptance_rate=1.0",
        ),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


RANKED = [[(5, 0.9), (6, 0.06), (7, 0.04)], [(1, 0.4), (2, 0.35), (3, 0.25)], [(9, 0.7), (8, 0.3)]]


def test_joint_outcomes_are_the_likeliest_of_all():
    """By hand: the chance of k accepted is that of the draft tokens before, and a draft token is no outcome."""
    chances = {
        (0, 6): 0.06, (0, 7): 0.04,
        (1, 1): 0.9 * 0.4, (1, 3): 0.9 * 0.25,
        (2, 9): 0.9 * 0.35 * 0.7, (2, 8): 0.9 * 0.35 * 0.3,
    }  # fmt: skip
    likeliest = sorted(chances, key=chances.__getitem__, reverse=True)
    for budget in range(8):
        assert joint_outcomes(RANKED, [5, 2], budget=budget) == likeliest[:budget]


def test_a_draft_token_beyond_the_ranked_counts_as_the_rarest():
    assert joint_outcomes(RANKED[:2], [4], budget=2) == [(0, 5), (0, 6)]
    assert joint_outcomes([[], RANKED[1]], [4], budget=1) == [(1, 3)]


def test_shared_outcomes_take_the_likeliest_of_each_place():
    assert shared_outcomes(RANKED, [5, 2], fan_out=(1, 5, 1)) == [(0, 6), (1, 1), (1, 3), (2, 9)]
    assert shared_outcomes(RANKED, [5, 2], fan_out=(0, 0, 2)) == [(2, 9), (2, 8)]
