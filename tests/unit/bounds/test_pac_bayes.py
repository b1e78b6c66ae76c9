"""The bounds against exact arithmetic, against each other, and against known risks."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.bounds.pac_bayes import (
    affordable_bits,
    binary_kl,
    binomial_tail_bound,
    catoni_bound,
    complexity_nats,
    empirical_bernstein_bound,
    holdout_bound,
    kl_bound,
    mcallester_bound,
    risk_bounds,
)
from forerun.core.errors import ConfigError

FAMILIES = ("binomial", "kl", "catoni", "mcallester")


def exact_log_tail(num_errors: int, num_samples: int, p: float) -> float:
    """ln P(Bin(n, p) <= k) by whole-number arithmetic: p is a fraction with a power of two below."""
    top, bottom = Fraction(p).as_integer_ratio()
    total = sum(math.comb(num_samples, i) * top**i * (bottom - top) ** (num_samples - i) for i in range(num_errors + 1))
    # math.log takes integers of any size, where a float would overflow.
    return math.log(total) - num_samples * math.log(bottom)


@pytest.mark.parametrize(
    ("num_errors", "num_samples", "complexity"),
    [(0, 1, 3.0), (0, 20, 3.0), (3, 20, 5.0), (19, 20, 3.0), (180, 1500, 257.0), (87, 1500, 900.0), (5, 900, 2500.0)],
)
def test_binomial_bound_is_where_the_exact_tail_crosses(num_errors, num_samples, complexity):
    p = binomial_tail_bound(num_errors, num_samples, complexity)
    assert exact_log_tail(num_errors, num_samples, p) <= -complexity
    if p < 1:
        assert exact_log_tail(num_errors, num_samples, p * (1 - 1e-9)) > -complexity - 1e-4


def test_binomial_bound_of_no_errors_is_the_closed_form():
    assert binomial_tail_bound(0, 100, math.log(20)) == pytest.approx(1 - 0.05 ** (1 / 100), rel=1e-9)


def test_tail_does_not_underflow_where_floats_do():
    # A complexity of 1,336 nats: exp(-1336) is zero as a float, and a tail of zero would give about 0.23.
    p = risk_bounds(num_errors=9960, num_samples=60_000, code_length_bits=1927, delta=0.05).binomial
    assert 0.2525 < p < 0.2545


def test_reference_values_of_a_digit_classifier():
    # Two values found with other code, in a study before this package: 180 errors, 367 bits.
    bounds = risk_bounds(num_errors=180, num_samples=1500, code_length_bits=367, delta=0.05)
    assert bounds.kl == pytest.approx(0.381, abs=1e-3)
    assert bounds.binomial == pytest.approx(0.3795, abs=1e-3)


@pytest.mark.parametrize("case", [(0, 10, 2.0), (3, 10, 2.0), (10, 10, 2.0), (180, 1500, 257.0)])
def test_kl_bound_is_where_kl_crosses(case):
    num_errors, num_samples, complexity = case
    p = kl_bound(*case)
    if p < 1:
        assert binary_kl(num_errors / num_samples, p) == pytest.approx(complexity / num_samples, rel=1e-6)


def test_catoni_is_the_brute_force_over_its_grid_and_pays_for_it():
    paid = 257.0 + math.log(64)
    brute = min(
        (1 - math.exp(-g * 0.12 - paid / 1500)) / (1 - math.exp(-g)) for g in [4 * 2 ** (-j / 4) for j in range(64)]
    )
    assert catoni_bound(180, 1500, 257.0) == pytest.approx(brute, rel=1e-9)


counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(max_examples=60)
@given(counts, st.floats(0.01, 5000))
def test_families_are_nested(count, complexity):
    num_errors, num_samples = count
    binomial = binomial_tail_bound(num_errors, num_samples, complexity)
    kl = kl_bound(num_errors, num_samples, complexity)
    assert num_errors / num_samples <= binomial <= kl + 1e-9
    assert kl <= catoni_bound(num_errors, num_samples, complexity) + 1e-9
    assert kl <= mcallester_bound(num_errors, num_samples, complexity) + 1e-9


@settings(max_examples=40)
@given(counts, st.floats(0, 2000), st.floats(1e-9, 0.99))
def test_bounds_grow_with_errors_and_bits_and_fall_with_delta(count, bits, delta):
    num_errors, num_samples = count
    here = risk_bounds(num_errors=num_errors, num_samples=num_samples, code_length_bits=bits, delta=delta)
    longer = risk_bounds(num_errors=num_errors, num_samples=num_samples, code_length_bits=bits + 9, delta=delta)
    worse = risk_bounds(
        num_errors=min(num_errors + 1, num_samples), num_samples=num_samples, code_length_bits=bits, delta=delta
    )
    surer = risk_bounds(num_errors=num_errors, num_samples=num_samples, code_length_bits=bits, delta=delta / 2)
    for name in FAMILIES:
        for other in (longer, worse, surer):
            assert getattr(here, name) <= getattr(other, name) + 1e-9
    assert here.tightest == here.binomial or here.tightest_name != "binomial"


@pytest.mark.statistical
@pytest.mark.parametrize("delta", [0.05, 0.3])
def test_coverage_with_selection_over_a_countable_class(delta):
    """Classifiers h_j of known risks, prior 2**-j: training picks the one with the least bound, the worst case.

    2,000 certificates; the true violation rate is at most delta, so more than delta + 4.5 standard deviations of
    violations has a probability below 1e-5 for each family (Chernoff; eight checks: below 1e-4 in all).
    """
    num_trials, num_samples, num_classifiers = 2000, 60, 10
    source = np.random.default_rng(11)
    risks = np.linspace(0.5, 0.2, num_classifiers)
    errors = source.binomial(num_samples, risks, size=(num_trials, num_classifiers))
    table = {
        name: np.array([
            [
                getattr(
                    risk_bounds(num_errors=k, num_samples=num_samples, code_length_bits=j + 1, delta=delta), name
                )
                for k in range(num_samples + 1)
            ]
            for j in range(num_classifiers)
        ])
        for name in FAMILIES
    }  # fmt: skip
    allowed = num_trials * delta + 4.5 * math.sqrt(num_trials * delta * (1 - delta))
    for name in FAMILIES:
        bounds = table[name][np.arange(num_classifiers)[None, :], errors]
        chosen = np.argmin(bounds - risks, axis=1)
        violations = int((bounds[np.arange(num_trials), chosen] < risks[chosen]).sum())
        assert violations <= allowed, f"{name}: {violations} of {num_trials}"


@pytest.mark.statistical
def test_coverage_check_catches_a_bound_that_does_not_pay_for_its_choice():
    """The negative control: without the code length, the same selection breaks the same limit.

    Each of 10 classifiers then fails with a probability near 0.2, so 2,000 trials pass with probability below 1e-9.
    """
    source = np.random.default_rng(12)
    risks = np.linspace(0.5, 0.2, 10)
    errors = source.binomial(60, risks, size=(2000, 10))
    unpaid = np.array([binomial_tail_bound(k, 60, -math.log(0.3)) for k in range(61)])
    violations = int((unpaid[errors] < risks).any(axis=1).sum())
    assert violations > 2000 * 0.3 + 4.5 * math.sqrt(2000 * 0.3 * 0.7)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_delta_outside_the_open_interval_is_refused(delta):
    with pytest.raises(ConfigError, match="strictly between 0 and 1"):
        complexity_nats(code_length_bits=1.0, delta=delta)


@pytest.mark.parametrize("bits", [-1.0, math.inf, math.nan])
def test_code_length_must_be_a_length(bits):
    with pytest.raises(ConfigError, match="code_length_bits"):
        complexity_nats(code_length_bits=bits, delta=0.1)


@pytest.mark.parametrize(("num_errors", "num_samples"), [(-1, 5), (6, 5), (0, 0)])
def test_counts_must_be_counts(num_errors, num_samples):
    with pytest.raises(ConfigError, match="num_errors"):
        holdout_bound(num_errors=num_errors, num_samples=num_samples, delta=0.1)


def test_affordable_bits_just_afford_the_target():
    bits = affordable_bits(target_risk=0.5, empirical_risk=0.05, num_samples=1500, delta=0.05)
    assert bits == pytest.approx(1066, abs=1)
    assert kl_bound(75, 1500, complexity_nats(code_length_bits=bits, delta=0.05)) == pytest.approx(0.5, abs=1e-6)
    assert affordable_bits(target_risk=0.05, empirical_risk=0.05, num_samples=9, delta=0.5) == -math.inf


def dependent_losses(source, num_samples):
    """Return losses whose expectations follow the losses before, and those expectations."""
    losses, expectations, level = [], [], 0.2
    for _ in range(num_samples):
        expectations.append(level)
        losses.append(source.beta(4 * level, 4 * (1 - level)))
        level = 0.1 + 0.5 * losses[-1]
    return np.array(losses), np.array(expectations)


def test_empirical_bernstein_holds_for_dependent_losses_and_fails_without_the_confidence():
    """At most 5% of 400 bounds may fail; by chance over 8% with probability under 0.005. Without complexity most do."""
    source = np.random.default_rng(8)
    failed, control = 0, 0
    for _ in range(400):
        losses, expectations = dependent_losses(source, 200)
        failed += empirical_bernstein_bound(losses, -math.log(0.05)) < expectations.mean()
        control += losses.mean() - 1e-3 < expectations.mean()
    assert failed <= 32
    assert control > 160


def test_empirical_bernstein_profits_from_losses_that_vary_little():
    losses = 0.3 + 0.02 * np.random.default_rng(1).random(5000)
    bound = empirical_bernstein_bound(losses, 10.0)
    hoeffding = losses.mean() + math.sqrt(10.0 / (2 * 5000))
    assert losses.mean() < bound < losses.mean() + 0.4 * (hoeffding - losses.mean())
    assert bound < empirical_bernstein_bound(losses, 20.0) < empirical_bernstein_bound(losses[:1000], 20.0)


def test_empirical_bernstein_is_the_formula_at_one_rate():
    losses, complexity = np.array([0.0, 1.0, 0.5, 0.25]), 1.5
    centres = np.array([0.5, 0.25, 0.5, 0.5])
    spread = np.square(losses - centres).sum()
    rates = [0.95 * 2 ** (-j / 2) for j in range(20)]
    values = [
        losses.mean() + ((-math.log(1 - r) - r) * spread + complexity + math.log(20)) / (r * 4) for r in rates
    ]  # fmt: skip
    assert empirical_bernstein_bound(losses, complexity) == pytest.approx(min(1.0, *values))
    assert empirical_bernstein_bound(np.tile(losses, 50), complexity) < 1


@pytest.mark.parametrize("losses", [[], [0.5, 1.5], [math.nan]])
def test_empirical_bernstein_refuses_losses_out_of_range(losses):
    with pytest.raises(ConfigError, match="from 0 to 1"):
        empirical_bernstein_bound(np.array(losses), 1.0)
