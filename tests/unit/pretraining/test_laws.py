"""Laws: known answers come back, what the points do not say is not said, replicates have the spread they should."""

import itertools
import math

import numpy as np
import pytest

from forerun.core.errors import ConfigError
from forerun.pretraining.efficiency import data_multiplier, interpolated_tokens
from forerun.pretraining.laws import fit_power_law, fit_replicates, interval_of, leave_one_out, reciprocal_limit
from forerun.pretraining.resampling import Resampling, mixture_nats

SIZES = [25e3, 75e3, 150e3, 440e3, 800e3]


def law(asymptote, coefficient, exponent, x=SIZES):
    return [asymptote + coefficient * value**-exponent for value in x]


@pytest.mark.parametrize(
    ("asymptote", "coefficient", "exponent"),
    [(3.43, 800.0, 0.7), (1.9, 30.0, 0.23), (3.17, 5e4, 1.02), (0.5, 4.0, 0.08)],
)
def test_a_law_without_noise_comes_back(asymptote, coefficient, exponent):
    points = law(asymptote, coefficient, exponent)
    found = fit_power_law(SIZES, points)
    assert found.asymptote == pytest.approx(asymptote, abs=1e-4)
    assert found.exponent == pytest.approx(exponent, rel=1e-4)
    assert found.coefficient == pytest.approx(coefficient, rel=1e-3)
    assert found.is_identified
    assert found.residual_nats < 1e-6
    assert found.inverse(found.at(5e5)) == pytest.approx(5e5, rel=1e-6)
    assert found.inverse(asymptote - 0.01) == math.inf
    for without in leave_one_out(SIZES, points):
        assert without.asymptote == pytest.approx(asymptote, abs=1e-3)
    [row] = fit_replicates(SIZES, [points])
    assert row[0] == pytest.approx(asymptote, abs=0.02)


def test_the_published_limits_give_the_published_asymptote():
    # Kim et al. 2025, limits in K at 200M tokens by parameters in billions; they state 3.17.
    limits = [3.495, 3.273, 3.212, 3.174]
    found = fit_power_law([0.15, 0.3, 0.6, 1.4], limits)
    assert found.asymptote == pytest.approx(3.169, abs=5e-4)
    assert found.is_identified
    left_out = [item.asymptote for item in leave_one_out([0.15, 0.3, 0.6, 1.4], limits)]
    assert min(left_out) == pytest.approx(3.139, abs=5e-3)
    assert max(left_out) == pytest.approx(3.189, abs=5e-3)


@pytest.mark.parametrize(
    ("x", "losses", "problem"),
    [
        (SIZES[:3], law(3, 100, 0.5, SIZES[:3]), "3 points for 3 parameters"),
        (SIZES, [3.0, 3.1, 3.2, 3.3, 3.4], "does not fall"),
        (SIZES, [4 - 0.1 * math.log(value) for value in SIZES], "end of its range"),
        (SIZES, [5.0, 4.0, 4.0, 4.0, 4.0], "end of its range"),
        (SIZES, law(-2.0, 30, 0.2), "a loss is above 0"),
    ],
)
def test_points_that_do_not_say_what_the_limit_is(x, losses, problem):
    found = fit_power_law(x, losses)
    assert not found.is_identified
    assert any(problem in text for text in found.problems)


@pytest.mark.parametrize(
    ("x", "losses"), [([1, 2], [3, 2]), ([1, 2, 2], [3, 2, 1]), ([0, 1, 2], [3, 2, 1]), ([1, 2, 3], [3, 2, math.inf])]
)
def test_points_that_are_none_are_refused(x, losses):
    with pytest.raises(ConfigError, match=r"3 parameters|positive and distinct"):
        fit_power_law(x, losses)


def test_limits_in_the_number_of_members():
    found = reciprocal_limit([[2 + 0.6 / count for count in range(1, 6)], [1.5] * 5])
    np.testing.assert_allclose(found, [[2, 0.6], [1.5, 0]], atol=1e-12)
    with pytest.raises(ConfigError, match="at least 2"):
        reciprocal_limit([[1.0]])


def test_an_interval_is_the_middle_of_the_replicates_and_infinity_is_at_its_end():
    found = interval_of([0.3, *np.arange(1000) / 1000])
    assert (found.value, found.low, found.high) == (0.3, pytest.approx(0.025, abs=2e-3), pytest.approx(0.975, abs=2e-3))
    assert interval_of([1.0, *range(90), *[math.inf] * 10]).high == math.inf


def test_a_mixture_needs_only_the_losses_of_its_members():
    nats = np.array([[1.0, 700.0], [3.0, 710.0]], np.float32)
    expected = [-math.log((math.exp(-1) + math.exp(-3)) / 2), 700 - math.log((1 + math.exp(-10)) / 2)]
    np.testing.assert_allclose(mixture_nats(nats), expected, rtol=1e-6)


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    starts = np.arange(0, 400, 20)
    common = rng.gamma(4, 1, 400)
    nats = np.stack([common + rng.normal(0, 0.5, 400) for _ in range(4)]).astype(np.float32)
    return nats, starts


def test_the_first_replicate_is_the_sample_and_curves_are_means_over_choices(sample):
    nats, starts = sample
    resampling = Resampling([20] * 20, num_replicates=50, seed=1)
    curve = resampling.ensemble_curve(nats, starts)
    for size in (1, 2, 3, 4):
        choices = itertools.combinations(range(4), size)
        expected = np.mean([mixture_nats(nats[list(choice)]).mean() for choice in choices])
        assert curve[0, size - 1] == pytest.approx(expected, rel=1e-9)
    sums = [np.add.reduceat(row.astype(np.float64), starts) for row in nats]
    assert resampling.seed_mean(sums)[0] == pytest.approx(nats.mean(), rel=1e-6)
    assert (np.diff(curve[0]) < 0).all(), "more members are better, by Jensen"


def test_replicates_have_the_spread_of_documents_and_of_seeds(sample):
    """Each standard deviation is of 4,000 replicates: off by 6 % has a probability below 1e-6."""
    nats, starts = sample
    sums = [np.add.reduceat(row.astype(np.float64), starts) for row in nats]
    one = Resampling([20] * 20, num_replicates=4000, seed=2)
    documents = sums[0] / 20
    assert one.loss(sums[0])[1:].std() == pytest.approx(documents.std() / math.sqrt(20), rel=0.06)
    alike = [np.full(20, 20.0 * (1 + shift)) for shift in (0.0, 0.1, 0.4)]  # documents do not differ: seeds alone do
    expected = np.std([1.0, 1.1, 1.4], ddof=1) / math.sqrt(3)
    assert one.seed_mean(alike)[1:].std() == pytest.approx(expected, rel=0.06)
    assert one.seed_mean(alike[:1])[1:].std() < 1e-9, "one seed has no noise between seeds"
    single = np.repeat(np.array([[1.0], [1.1], [1.4]], np.float32), 400, axis=1)
    assert one.ensemble_curve(single, starts)[1:, 0].std() == pytest.approx(expected, rel=0.06)


def test_a_multiplier_is_seen_or_extrapolated_or_neither():
    tokens = [50_000, 100_000, 200_000, 400_000]

    rng = np.random.default_rng(0)

    def curve(count):
        return law(1.9, 60, 0.25, [count])[0] + np.concatenate([[0.0], rng.normal(0, 1e-3, 400)])

    standard = [curve(count) for count in tokens]
    reached = data_multiplier(tokens, standard, curve(150_000))
    assert reached.observed.value == pytest.approx(3, rel=0.02)
    assert reached.extrapolated.value == pytest.approx(3, rel=1e-3)
    assert reached.extrapolated.low <= 3 <= reached.extrapolated.high
    beyond = data_multiplier(tokens, standard, curve(800_000))
    assert beyond.observed.value == math.inf
    assert beyond.most_seen == 8
    assert beyond.extrapolated.value == pytest.approx(16, rel=1e-3)
    limit = data_multiplier(tokens, standard, curve(150_000), is_limit=True)
    assert limit.observed is None
    few = data_multiplier(tokens[:2], standard[:2], curve(75_000))
    assert few.extrapolated is None
    assert few.problems == ("2 amounts of text for 3 parameters",)
    with pytest.raises(ConfigError, match="must rise"):
        data_multiplier(tokens[::-1], standard, curve(75_000))


def test_a_standard_recipe_that_gets_worse_has_a_plateau():
    assert interpolated_tokens([1, 2, 4], [5.0, 5.5, 4.0], 5.0) == pytest.approx(2)
    assert interpolated_tokens([1, 2, 4], [5.0, 5.5, 4.0], 5.2) == 1
