"""Tasks out of held-out episodes, agents between floor and ceiling, surprise at events, the study from end to end."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated.worlds import TINY_COLLECT, tiny_dataset, tiny_train

from forerun.core.errors import ConfigError, TrajectoryError
from forerun.envs.two_room import SUCCESS_RADIUS, WALL_X
from forerun.recipes.world.agents import ExpertAgent, PlanConfig, PlanningAgent, RandomAgent
from forerun.recipes.world.goal_tasks import held_out_tasks
from forerun.recipes.world.play import play, wilson_interval
from forerun.recipes.world.reproduce import SCALES, reproduce
from forerun.recipes.world.surprise_benchmark import SurpriseConfig, auroc, measure_surprise
from forerun.worldmodels.jepa.train import fresh_model


@pytest.fixture(scope="module")
def held_out():
    return tiny_dataset().episodes


@pytest.fixture(scope="module")
def model(held_out):
    return fresh_model(held_out, tiny_train()).eval()


def tasks_of(held_out, protocol, count=12):
    return held_out_tasks(held_out, protocol, num_tasks=count, frame_skip=5, seed=0)


def test_near_goals_are_25_actions_ahead_and_never_reached_already(held_out):
    tasks = tasks_of(held_out, "near")
    rows = {tuple(state): row for row, state in enumerate(held_out.states.astype(np.float64).tolist())}
    for start, goal in zip(tasks.starts.tolist(), tasks.goals.tolist(), strict=True):
        assert rows[tuple(goal)] - rows[tuple(start)] == 5
    assert (np.hypot(*(tasks.goals - tasks.starts).T) > SUCCESS_RADIUS).all()
    assert tasks.goal_pixels.shape == (12, 16, 16, 3)
    with pytest.raises(TrajectoryError, match="10000 tasks"):
        tasks_of(held_out, "near", 10_000)


def test_opposite_goals_are_in_the_other_room(held_out):
    tasks = tasks_of(held_out, "opposite")
    assert ((tasks.starts[:, 0] < WALL_X) != (tasks.goals[:, 0] < WALL_X)).all()


@pytest.mark.parametrize("protocol", ["near", "opposite"])
def test_expert_above_chance(held_out, protocol):
    tasks = tasks_of(held_out, protocol)
    expert, chance = play(tasks, ExpertAgent(tasks)), play(tasks, RandomAgent(tasks, seed=0))
    assert expert.success_rate == 1.0
    assert chance.success_rate < 0.6
    assert len(expert.frames) == len(expert.positions) <= 1 + tasks.budget_steps // 5


def test_a_task_that_is_done_is_left_alone(held_out):
    tasks = tasks_of(held_out, "near")

    class Watched(ExpertAgent):
        seen = ()

        def act(self, world, frames, active):
            self.seen = (*self.seen, active.tolist())
            assert len(frames) == len(active)
            return super().act(world, frames, active)

    agent = Watched(tasks)
    play(tasks, agent)
    assert agent.seen[0] == list(range(12))
    assert all(set(after) <= set(before) for before, after in zip(agent.seen, agent.seen[1:], strict=False))
    assert len(agent.seen[-1]) < 12


def test_a_planner_plans_again_when_its_blocks_are_used_up(held_out, model):
    tasks = tasks_of(held_out, "near", 3)
    config = PlanConfig(horizon=3, execute_horizon=2, num_samples=8, num_elites=3, num_iterations=1)
    agent = PlanningAgent(model, tasks, config)
    played = play(tasks, agent)
    assert len(agent.plans) == -(-(len(played.frames) - 1) // 2)
    assert agent.plans[0][1].states.shape == (3, 3, 8)
    again = PlanningAgent(model, tasks, config)
    assert np.array_equal(play(tasks, again).positions, played.positions)
    warm = PlanningAgent(model, tasks, replace(config, has_warm_start=True))
    assert not np.array_equal(play(tasks, warm).positions, played.positions)
    hurried = PlanningAgent(model, tasks, replace(config, num_iterations=50, deadline_s=1e-9))
    play(tasks, hurried)
    assert {plan.num_iterations for _, plan in hurried.plans} == {1}
    with pytest.raises(ConfigError, match="execute_horizon=4"):
        PlanConfig(horizon=3, execute_horizon=4)


def test_wilson_interval():
    assert wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson_interval(0, 20)[0] == pytest.approx(0, abs=1e-12)


def test_auroc_counts_ties_half():
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])) == pytest.approx(3.5 / 4)


def test_events_happen_once_and_pairs_are_equal_before(model):
    config = SurpriseConfig(num_calibration=4, num_pairs=6, false_alarm_rate=0.2)
    result = measure_surprise(model, TINY_COLLECT, config)
    first = result.event_frame - 1
    for name, event in result.events.items():
        before = first - (name == "dynamics")
        torch.testing.assert_close(event.surprises[:, :before], result.undisturbed[:, :before])
        assert not torch.allclose(event.surprises[:, first:], result.undisturbed[:, first:])
    states = result.events["teleport"].episodes.states.reshape(6, -1, 2)
    jumps = np.hypot(*(states[:, first + 1] - states[:, first]).T)
    assert (jumps > 60 - 5 * 5 * 1.5).all()
    assert result.num_frames == 6 * 8
    assert len(result.lines()) == 4


@pytest.mark.slow
def test_the_study_from_end_to_end(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    smoke = SCALES["smoke"]
    scale = replace(
        smoke,
        collect=replace(TINY_COLLECT, num_episodes=40),
        train=replace(
            tiny_train(num_steps=100, monitor_every=50, learning_rate=5e-3),
            objective=replace(smoke.train.objective, weight=0.2),
        ),
        plan=PlanConfig(num_samples=16, num_elites=4, num_iterations=2),
        num_tasks=4,
        surprise=SurpriseConfig(num_calibration=10, num_pairs=6, false_alarm_rate=0.1),
    )
    found = reproduce(tmp_path, scale)
    names = {(row["protocol"], row["name"]) for row in found.numbers["success"]}
    for protocol in ("near", "opposite"):
        for name in ("random", "lambda = 0", "world model", "world model, by map", "expert"):
            assert (protocol, name) in names
    assert found.numbers["training"]["lambda = 0"][0]["why_collapsed"] is not None
    assert found.numbers["training"]["world model"][0]["why_collapsed"] is None
    with image.open(tmp_path / "plan.gif") as animation:
        assert animation.n_frames >= 2
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    for name in ("plan.gif", "surprise.png", "health.png"):
        assert (tmp_path / name).stat().st_size > 500
        assert name in page
