"""What every ``Planner`` promises: it finds a known optimum, keeps bounds, repeats itself, and obeys the clock."""

import pytest
import torch

from forerun.core.control import INFEASIBLE, UNUSABLE, ActionBounds, History, Plan
from forerun.core.errors import ConfigError, ObjectiveError
from forerun.core.generator import keyed_generator
from forerun.planning.cem import Cem, CemConfig
from forerun.planning.gradient import GradientConfig, GradientPlanner
from forerun.planning.icem import Icem, IcemConfig
from forerun.planning.mppi import Mppi, MppiConfig
from forerun.planning.objective import Constraint, GoalDistance, RunningReward
from forerun.planning.random_shooting import RandomShooting, UniformProposal
from forerun.planning.ssr import Ssr, SsrConfig

HORIZON, NUM_ENVS = 3, 2
BOUNDS = ActionBounds.symmetric(2)


class Integrator:
    """The state moves by the action: the best plan for a goal is known."""

    action_dim = 2

    def rollout(self, history, actions, *, generator):
        return history.present[:, None, None] + actions.cumsum(dim=2)


class Diverging(Integrator):
    """Predicts infinity where the first action is positive."""

    def rollout(self, history, actions, *, generator):
        states = super().rollout(history, actions, generator=generator)
        return states.masked_fill((actions[:, :, :1, :1] > 0).expand_as(states), float("inf"))


def cem(**parts):
    config = CemConfig(horizon=HORIZON, num_samples=200, num_elites=20, num_iterations=12)
    return Cem(config, bounds=BOUNDS, **parts)


def icem(**parts):
    config = IcemConfig(horizon=HORIZON, num_samples=200, num_elites=20, num_iterations=12, momentum=0.1)
    return Icem(config, bounds=BOUNDS, **parts)


def mppi(**parts):
    config = MppiConfig(
        horizon=HORIZON, num_samples=200, num_iterations=25, temperature=0.2, num_elites=40, adapts_std=True,
        min_std=0.01,
    )  # fmt: skip
    return Mppi(config, bounds=BOUNDS, **parts)


def gradient(**parts):
    config = GradientConfig(horizon=HORIZON, num_samples=8, num_iterations=120, learning_rate=0.05)
    return GradientPlanner(config, bounds=BOUNDS, **parts)


def random_shooting(**parts):
    return RandomShooting(SsrConfig(num_samples=40_000), horizon=HORIZON, bounds=BOUNDS, **parts)


def ssr(**parts):
    proposal = UniformProposal(BOUNDS, horizon=HORIZON)
    return Ssr(SsrConfig(num_samples=40_000), proposal=proposal, bounds=BOUNDS, **parts)


SEARCHES = [cem, icem, mppi]
ITERATIVE = [*SEARCHES, gradient]
ALL = [*ITERATIVE, random_shooting, ssr]
GOAL = torch.tensor([[0.6, -0.3], [1.5, 0.9]])
"""Reached exactly, at no more than a third of the goal per step, by every environment from the origin."""
HISTORY = History.of_present(torch.zeros(NUM_ENVS, 2), action_dim=2)


def tracking():
    """Least squares with a known optimum: a_t = goal / 3 each step, score 0 minus 0.01 * 3 * |goal/3|^2 nearly."""
    return -GoalDistance(GOAL) - 0.01 * RunningReward(lambda states, actions: (actions**2).sum(dim=-1))


def best_score():
    """Return the optimum by linear algebra: minimise |3a - g|^2 + 0.03 |a|^2 over the common action a."""
    action = 3 * GOAL / (9 + 0.03)
    return -((3 * action - GOAL) ** 2).sum(dim=-1) - 0.03 * (action**2).sum(dim=-1)


def solve(make, *, objective=None, dynamics=None, seed=0, **options) -> Plan:
    planner = make(dynamics=dynamics or Integrator(), objective=objective or tracking())
    return planner.plan(HISTORY, generator=keyed_generator(seed, "plan"), **options)


@pytest.mark.parametrize("make", ALL)
def test_finds_the_known_optimum_of_every_environment(make):
    plan = solve(make)
    tolerance = 5e-3 if make in ITERATIVE else 0.15
    assert plan.scores.tolist() == pytest.approx(best_score().tolist(), abs=tolerance)
    assert bool((plan.scores <= best_score() + 1e-6).all())


@pytest.mark.parametrize("make", ALL)
def test_what_it_returns_fits_together(make):
    plan = solve(make)
    assert plan.actions.shape == plan.states.shape == (NUM_ENVS, HORIZON, 2)
    states = Integrator().rollout(HISTORY, plan.actions[:, None], generator=torch.Generator())
    assert torch.equal(plan.states, states[:, 0])
    assert torch.equal(plan.scores, tracking().score(HISTORY, states, plan.actions[:, None])[:, 0])
    assert plan.futures.shape[:2] == plan.future_scores.shape == plan.future_actions.shape[:2]
    assert plan.num_candidates >= plan.futures.shape[1]
    assert bool(plan.is_feasible.all())


@pytest.mark.parametrize("make", ALL)
def test_actions_stay_inside_the_bounds_when_the_optimum_does_not(make):
    plan = solve(make, objective=-GoalDistance(torch.tensor([30.0, -30.0])))
    assert float(plan.actions.abs().max()) <= 1.0
    assert plan.actions.mean(dim=1).tolist() == [pytest.approx([1.0, -1.0], abs=0.25)] * NUM_ENVS


@pytest.mark.parametrize("make", ALL)
def test_equal_generators_give_equal_plans_and_others_differ(make):
    first, again, other = (solve(make, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.actions, again.actions)
    assert not torch.equal(first.actions, other.actions)


@pytest.mark.parametrize("make", ALL)
def test_no_candidate_of_the_last_iteration_beats_the_plan(make):
    plan = solve(make)
    assert bool((plan.future_scores.amax(dim=1) <= plan.scores).all())


@pytest.mark.parametrize("make", ALL)
def test_the_first_iteration_is_done_even_when_late(make):
    plan = solve(make, is_late=lambda: True)
    assert plan.num_iterations == 1
    assert plan.is_complete == (make not in ITERATIVE)
    assert bool(plan.scores.isfinite().all())


@pytest.mark.parametrize("make", ITERATIVE)
def test_the_clock_is_asked_after_each_iteration_and_more_time_is_no_worse(make):
    asked = []

    def is_late():
        asked.append(None)
        return len(asked) == 3

    plan = solve(make, is_late=is_late)
    assert (plan.num_iterations, plan.is_complete) == (3, False)
    assert bool((plan.scores >= solve(make, is_late=lambda: True).scores).all())


@pytest.mark.parametrize("make", ALL)
def test_a_warm_start_at_the_optimum_is_not_lost(make):
    best = (3 * GOAL / 9.03)[:, None].expand(-1, HORIZON, -1)
    plan = solve(make, warm_start=best, is_late=lambda: True)
    if make is not icem:  # its mean is a candidate in the last iteration only
        assert plan.scores.tolist() == pytest.approx(best_score().tolist(), abs=1e-5)
    else:
        assert bool((plan.scores > solve(make, is_late=lambda: True).scores).any())


@pytest.mark.parametrize("make", ITERATIVE)
def test_a_warm_start_of_another_shape_is_refused(make):
    with pytest.raises(ConfigError, match=r"warm start of shape \[2, 4, 2\].*\[2, 3, 2\]"):
        solve(make, warm_start=torch.zeros(NUM_ENVS, HORIZON + 1, 2))


@pytest.mark.parametrize("make", ALL)
def test_plans_that_keep_a_hard_constraint_come_first(make):
    limit = Constraint(lambda states, actions: states[..., 0] - 0.2, name="x at most 0.2")
    plan = solve(make, objective=tracking().subject_to(limit))
    assert bool(plan.is_feasible.all())
    assert float(plan.states[..., 0].max()) <= 0.2
    assert plan.states[0, -1, 1].item() == pytest.approx(-0.3, abs=0.25)


@pytest.mark.parametrize("make", ALL)
def test_an_impossible_constraint_gives_the_least_violation_and_says_so(make):
    never = Constraint(lambda states, actions: 1.0 + actions[..., 0].abs(), name="never")
    plan = solve(make, objective=tracking().subject_to(never))
    assert not bool(plan.is_feasible.any())
    assert float(plan.scores.max()) <= INFEASIBLE
    assert float(plan.actions[..., 0].abs().mean()) < 0.35


@pytest.mark.parametrize("make", ALL)
def test_diverging_predictions_are_ranked_last(make):
    plan = solve(make, dynamics=Diverging())
    assert bool((plan.actions[:, 0, 0] <= 0).all())
    if make not in ITERATIVE:  # those have left the diverging half behind by then
        assert bool((plan.future_scores == UNUSABLE).any())
    assert bool(plan.states.isfinite().all())


@pytest.mark.parametrize("make", ALL)
def test_an_objective_that_is_not_a_number_names_the_candidate(make):
    root = RunningReward(lambda states, actions: actions[..., 0].sqrt())
    with pytest.raises(ObjectiveError, match=r"not a number for candidate \d+ of environment \d.*first action is \["):
        solve(make, objective=root)


@pytest.mark.parametrize("make", ALL)
def test_an_objective_of_another_shape_is_named(make):
    def flat(states, actions):
        return actions.sum(dim=-1)[0]

    with pytest.raises(ObjectiveError, match=r"flat returned shape \[\d+, 3\].*must be \[2, \d+, 3\]"):
        solve(make, objective=RunningReward(flat))


@pytest.mark.parametrize("make", SEARCHES)
def test_proposals_are_scored_beside_the_candidates(make):
    class Oracle(UniformProposal):
        def propose(self, history, num_samples, *, generator, warm_start=None):
            return (3 * GOAL / 9.03)[:, None, None].expand(-1, num_samples, HORIZON, -1)

    planner = make(dynamics=Integrator(), objective=tracking(), proposal=Oracle(BOUNDS, horizon=HORIZON))
    planner.config = type(planner.config)(
        horizon=HORIZON, num_samples=60, num_iterations=1, num_elites=20, num_proposals=2
    )
    plan = planner.plan(HISTORY, generator=keyed_generator(0))
    assert plan.futures.shape[1] == 62
    assert plan.scores.tolist() == pytest.approx(best_score().tolist(), abs=1e-5)


def test_ascent_needs_a_slope():
    class Steps(Integrator):
        def rollout(self, history, actions, *, generator):
            return super().rollout(history, actions.detach(), generator=generator)

    with pytest.raises(ConfigError, match="plan by 'cem'"):
        solve(gradient, objective=-GoalDistance(GOAL), dynamics=Steps())


def test_ascent_counts_what_it_scored():
    plan = solve(gradient)
    assert plan.num_candidates == 120 * 8
    assert plan.futures.shape[1] == 8
    with pytest.raises(ConfigError, match="learning_rate=0"):
        GradientConfig(horizon=1, learning_rate=0)
