"""Objectives as values, as Python functions and as text; statistics of few episodes."""

import numpy as np
import pytest
import torch

from forerun.core.control import History
from forerun.core.errors import ConfigError, ObjectiveError
from forerun.planning.expression import ObjectiveLanguage
from forerun.planning.objective import Constraint, FinalReward, GoalDistance, PlanReward, RunningReward
from forerun.planning.statistics import estimate, interquartile_mean
from forerun.planning.terms import LeastReturn, TransitionReward, energy, keep_out, near

WORDS = ObjectiveLanguage(("position", "velocity"), {"task": near({0: 1.0})})
HISTORY = History.of_present(torch.zeros(1, 2), action_dim=1)
STATES = torch.tensor([[[[0.1, 1.0], [0.3, 2.0]], [[0.9, 0.0], [0.5, -1.0]]]])
"""One environment, two candidates, two steps."""
ACTIONS = torch.tensor([[[[0.5], [-0.5]], [[1.0], [0.0]]]])


def score(objective):
    return objective.score(HISTORY, STATES, ACTIONS)[0].tolist()


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("near(position=0.3)", [-0.2, -0.8]),
        ("near(position=0.3, velocity=1)", [-1.2, -3.8]),
        ("speed(2.0)", [-1.0, -5.0]),
        ("energy()", [-0.5, -1.0]),
        ("keep_out(position=(0.2, 1.0))", [0.1, 0.4]),
        ("keep_out(position=(0.2, 1.0), velocity=(-0.5, 5))", [0.1, 0.1]),
        ("keep_in(position=(0.2, 0.6))", [0.1, 0.3]),
        ("any_of(near(position=0.1), 2 * near(position=0.9))", [-0.2, -0.8]),
        ("task()", [-1.6, -0.6]),
        ("-energy()", [0.5, 1.0]),
        ("speed(2) + 0.5 * energy() - 10 * keep_out(position=(0.2, 1.0))", [-2.25, -9.5]),
        ("2 * (energy() - task()) * 3", [6.6, -2.4]),
        ("near(velocity=-1)", [-5.0, -1.0]),
    ],
)
def test_expressions_mean_what_they_say(text, scores):
    assert score(WORDS.objective(text)) == pytest.approx(scores)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("energy() +", "can't be read"),
        ("3", "is a number"),
        ("energy() * energy()", "multiplied by numbers only"),
        ("energy() + 3", "multiplied by numbers only"),
        ("enrgy()", "did you mean energy"),
        ("near()", "name at least one number of the state: position, velocity"),
        ("near(heigt=1)", "unknown number of the state"),
        ("speed()", "takes other arguments"),
        ("any_of()", "name one or more terms"),
        ("any_of(3)", "name one or more terms"),
        ("keep_out(position=(1, 0))", "low below high"),
        ("keep_out(position=1)", "low below high"),
        ("open('x').read()", "can't read"),
        ("(lambda: 1)()", "can't read"),
    ],
)
def test_expressions_that_can_not_be_meant(text, message):
    with pytest.raises(ConfigError, match=message):
        WORDS.objective(text)


def test_constraints_as_text():
    limit = WORDS.constraint("keep_out(position=(0.2, 1.0))")
    assert limit.total(STATES, ACTIONS).tolist() == [pytest.approx([0.1, 0.4])]
    with pytest.raises(ConfigError, match="must be keep_out"):
        WORDS.constraint("energy()")


def test_a_task_without_a_velocity_has_no_speed():
    with pytest.raises(ConfigError, match="this task has no velocity"):
        ObjectiveLanguage(("x", "y"), {}).objective("speed(1)")


def test_sums_open_and_python_sums_begin():
    total = sum([energy(), near({0: 0.3})])
    assert score(total) == pytest.approx([-0.7, -1.8])
    assert len((energy() + energy() - 2 * energy()).terms) == 3


def test_discounts_and_means():
    assert score(RunningReward(lambda s, a: s[..., 1], discount=0.5)) == pytest.approx([2.0, -0.5])
    assert score(RunningReward(lambda s, a: s[..., 1], discount=0.5, is_mean=True)) == pytest.approx([4 / 3, -1 / 3])


def test_the_last_state_has_a_value_of_its_own():
    assert score(FinalReward(lambda states: states[..., 0] * 10)) == pytest.approx([3.0, 5.0])


def test_a_transition_reward_sees_the_state_before():
    moved = TransitionReward(lambda before, actions, after: after[..., 0] - before[..., 0])
    assert score(moved) == pytest.approx([0.3, 0.5])


def test_goals_of_each_environment():
    goals = torch.tensor([[0.3, 2.0]])
    assert score(GoalDistance(goals)) == pytest.approx([0.0, 0.04 + 9.0])
    assert score(GoalDistance(goals[0], when="every")) == pytest.approx([0.04 + 1.0, 0.36 + 4 + 0.04 + 9])
    assert score(GoalDistance(goals, weights=torch.tensor([1.0, 0.0]))) == pytest.approx([0.0, 0.04])
    with pytest.raises(ObjectiveError, match=r"goal of shape \[1, 3\]"):
        score(GoalDistance(torch.zeros(1, 3)))


def test_functions_that_return_something_else_are_named():
    def total(states, actions):
        return 1.0

    with pytest.raises(ObjectiveError, match="total returned float: must return a torch tensor"):
        score(RunningReward(total))
    with pytest.raises(ObjectiveError, match="'steep' is not a number"):
        score(energy().subject_to(Constraint(lambda s, a: s[..., 1].log(), name="steep")))


def test_functions_that_fail_are_named_and_controllers_can_bridge_it():
    def careless(states, actions):
        return states[..., 7]

    for objective in (RunningReward(careless), PlanReward(lambda history, states, actions: careless(states, actions))):
        with pytest.raises(ObjectiveError, match="IndexError"):
            score(objective)
    with pytest.raises(ObjectiveError, match="careless failed on predicted states with IndexError"):
        score(energy().subject_to(Constraint(careless, name="x")))


def arrives(before, actions, after, /):
    return (after[..., 0] >= 1.0).float()


def test_a_plan_is_worth_no_more_than_what_is_left_of_it_on_the_way():
    """One of two plans walks to 0.6, the other stands before a wall at 0.2 and is then imagined behind it."""
    positions = torch.tensor([[[0.2, 0.3, 0.5, 0.6], [0.2, 0.2, 0.2, 0.9]]])
    states, actions = positions[..., None], torch.zeros(1, 2, 4, 1)
    history = History.of_present(torch.zeros(1, 1), action_dim=1)

    def scored(*depths):
        objective = LeastReturn(arrives, lambda states: 10 * states[..., 0], discount=0.5, depths=depths)
        return objective.score(history, states, actions)[0].tolist()

    assert scored(4) == pytest.approx([0.0625 * 6, 0.0625 * 9]), "only the end: the wall wins"
    assert scored(1, 2, 3, 4) == pytest.approx([0.375, 0.125 * 2])
    assert scored(99) == scored(4), "beyond the horizon is its end"
    with pytest.raises(ConfigError, match="depths=\\[0, 4\\]"):
        scored(0, 4)


def test_the_least_return_counts_what_was_paid_on_the_way():
    states = torch.tensor([1.0, 0.0, 1.0]).reshape(1, 1, 3, 1)
    history = History.of_present(torch.zeros(1, 1), action_dim=1)
    objective = LeastReturn(arrives, lambda states: 8 * states[..., 0], discount=0.5, depths=(2, 3))
    # After two steps 1 is paid and the state is worth nothing; after three it is 1 + 0.25 + 8 / 8.
    assert objective.score(history, states, torch.zeros(1, 1, 3, 1)).tolist() == [[1.0]]


def test_hard_constraints_do_not_compose_further():
    limited = energy().subject_to(Constraint(lambda s, a: s[..., 0], name="x"))
    with pytest.raises(ConfigError, match="put hard constraints on the whole sum"):
        _ = energy() + limited


def test_recorded_states_are_held_against_a_constraint():
    limit = WORDS.constraint("keep_in(position=(0.0, 0.5))")
    assert limit.violations(np.array([[[0.7, 0.0], [0.2, 0.0]]], dtype=np.float32)).tolist() == [
        [pytest.approx(0.2), 0.0]
    ]
    assert keep_out({0: (0.0, 1.0)}).score(HISTORY, STATES, ACTIONS).shape == (1, 2)


@pytest.mark.parametrize(
    ("values", "mean"),
    [([1, 2, 3, 4], 2.5), ([0, 2, 3, 100], 2.5), ([5], 5), ([1, 2, 9], (0.25 * 1 + 1 * 2 + 0.25 * 9) / 1.5)],
)
def test_the_interquartile_mean_leaves_out_the_outer_quarters(values, mean):
    assert float(interquartile_mean(np.array(values, dtype=float))) == pytest.approx(mean)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """150 samples of 40: fewer than 122 successes have a chance below 1e-4 even at a coverage of 0.92."""
    source = np.random.default_rng(0)
    found = [estimate([source.normal(3.0, 1.0, 40)], seed=index) for index in range(150)]
    assert sum(one.low <= 3.0 <= one.high for one in found) >= 122
    assert all(one.low <= one.value <= one.high for one in found)


def test_seeds_widen_the_interval():
    source = np.random.default_rng(0)
    groups = [source.normal(center, 0.1, 20) for center in (0.0, 5.0, 10.0)]
    apart, together = estimate(groups), estimate([np.concatenate(groups)])
    assert apart.high - apart.low > together.high - together.low
