"""Tasks out of held-out episodes, agents between floor and ceiling, surprise at events, the study from end to end."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated.worlds import TINY_COLLECT, tiny_dataset, tiny_train

from forerun.core.errors import ConfigError, TrajectoryError
from forerun.envs.two_room import SUCCESS_RADIUS, WALL_X, TwoRoom
from forerun.recipes.world.agents import ExpertAgent, PlanningAgent, RandomAgent
from forerun.recipes.world.bars import health_bars, success_bars, surprise_bars
from forerun.recipes.world.evaluation import Success, pooled
from forerun.recipes.world.goal_tasks import held_out_tasks
from forerun.recipes.world.planners import PlanConfig
from forerun.recipes.world.play import play, wilson_interval
from forerun.recipes.world.replanning import teleport
from forerun.recipes.world.reproduce import SCALES, reproduce
from forerun.recipes.world.surprise_benchmark import (
    SurpriseConfig,
    auroc,
    measure_surprise,
    record_surprise_episodes,
)
from forerun.worldmodels.jepa.surprise import SurpriseDetector, one_step_surprise
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
    assert agent.plans[0].plan.states.shape == (3, 3, 8)
    again = PlanningAgent(model, tasks, config)
    assert np.array_equal(play(tasks, again).positions, played.positions)
    warm = PlanningAgent(model, tasks, replace(config, has_warm_start=True))
    assert not np.array_equal(play(tasks, warm).positions, played.positions)
    hurried = PlanningAgent(model, tasks, replace(config, num_iterations=50, deadline_s=1e-9))
    play(tasks, hurried)
    assert {made.plan.num_iterations for made in hurried.plans} == {1}
    with pytest.raises(ConfigError, match="execute_horizon=4"):
        PlanConfig(horizon=3, execute_horizon=4)


def test_a_plan_begins_with_as_many_frames_as_are_wanted_and_were_seen(held_out, model, monkeypatch):
    tasks = tasks_of(held_out, "opposite", 3)
    histories, blocks = [], []
    rollout = model.rollout

    def noted(history, actions, *, generator):
        histories.append(history)
        return rollout(history, actions, generator=generator)

    monkeypatch.setattr(model, "rollout", noted)

    class Noted(PlanningAgent):
        def act(self, world, frames, active):
            blocks.append(super().act(world, frames, active))
            return blocks[-1]

    config = PlanConfig(horizon=2, execute_horizon=1, num_context=3, num_samples=4, num_elites=2, num_iterations=1)
    played = play(tasks, Noted(model, tasks, replace(config, is_bounded=True)))
    assert [history.states.shape[1] for history in histories[::2]][:5] == [1, 2, 3, 3, 3]  # scored twice: mean, too
    last = histories[6]
    torch.testing.assert_close(last.states[:, 0], model.encode_all(torch.from_numpy(played.frames[1])))
    torch.testing.assert_close(last.states[:, 2], model.encode_all(torch.from_numpy(played.frames[3])))
    torch.testing.assert_close(last.actions[:, 1], model.action_normalizer(torch.from_numpy(blocks[2])).float())
    with pytest.raises(ConfigError, match="num_context=0"):
        PlanConfig(num_context=0)


def test_wilson_interval():
    assert wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson_interval(0, 20)[0] == pytest.approx(0, abs=1e-12)


def test_auroc_counts_ties_half():
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])) == pytest.approx(3.5 / 4)


def test_events_happen_once_and_pairs_are_equal_before(model):
    config = SurpriseConfig(num_calibration=4, num_undisturbed=8, num_pairs=6, false_alarm_rate=0.2)
    episodes = record_surprise_episodes(TINY_COLLECT, config)
    result = measure_surprise(model, episodes, config)
    first = result.event_frame - 1
    for name, event in result.events.items():
        before = first - (name == "dynamics")
        torch.testing.assert_close(event.surprises[:, :before], result.undisturbed[:, :before])
        assert not torch.allclose(event.surprises[:, first:], result.undisturbed[:, first:])
    states = result.events["teleport"].episodes.states.reshape(6, -1, 2)
    jumps = np.hypot(*(states[:, first + 1] - states[:, first]).T)
    assert (jumps > 60 - 5 * 5 * 1.5).all()
    assert len(result.undisturbed) == 6
    assert result.false_alarms.num_episodes == 8
    assert len(result.lines()) == 4
    with pytest.raises(ConfigError, match="num_pairs=9"):
        replace(config, num_pairs=9)


def test_a_teleport_is_far_and_the_same_for_everybody(held_out):
    tasks = tasks_of(held_out, "opposite")
    positions = []
    for nudge in (0.0, 3.0):
        world = TwoRoom(tasks.looks, tasks.starts + nudge)
        before = world.positions
        happen = teleport(tasks, after_blocks=2, seed=0)
        happen(world, 1)
        assert np.array_equal(world.positions, before)
        happen(world, 2)
        assert (np.hypot(*(world.positions - before).T) >= 60).all()
        assert (np.hypot(*(world.positions - tasks.goals).T) >= 32).all()
        positions.append(world.positions)
    assert np.mean(positions[0] == positions[1]) > 0.5  # but where 60 units lie between the two distances


def test_whoever_is_surprised_plans_anew_and_nobody_else_does(held_out, model, monkeypatch):
    tasks = tasks_of(held_out, "opposite", 3)
    config = PlanConfig(horizon=4, execute_horizon=4, num_samples=8, num_elites=3, num_iterations=1)
    calls = []

    def scripted(model, history, actions, latents):
        calls.append(len(latents))
        surprises = torch.zeros(len(latents))
        surprises[1] = float(len(calls) == 2)  # the second look back is after two blocks
        return surprises

    monkeypatch.setattr("forerun.recipes.world.agents.one_step_surprise", scripted)
    agent = PlanningAgent(model, tasks, config, alarm_above=0.5)
    play(tasks, agent)
    assert [(made.block, made.tasks.tolist()) for made in agent.plans][:4] == [
        (0, [0, 1, 2]), (2, [1]), (4, [0, 2]), (6, [1]),
    ]  # fmt: skip
    assert agent.num_alarms == 1
    calm = PlanningAgent(model, tasks, config)
    play(tasks, calm)
    assert [made.block for made in calm.plans] == list(range(0, 20, 4))


def test_an_agent_is_as_surprised_as_the_detector(held_out, model, monkeypatch):
    tasks = tasks_of(held_out, "opposite", 2)
    config = PlanConfig(horizon=4, execute_horizon=4, num_samples=8, num_elites=3, num_iterations=1)
    seen, blocks = [], []
    monkeypatch.setattr(
        "forerun.recipes.world.agents.one_step_surprise",
        lambda *arguments: seen.append(one_step_surprise(*arguments)) or seen[-1],
    )

    class Recorded(PlanningAgent):
        def act(self, world, frames, active):
            blocks.append(super().act(world, frames, active))
            return blocks[-1]

    played = play(
        tasks, Recorded(model, tasks, config, alarm_above=1e9), before_look=teleport(tasks, after_blocks=3, seed=0)
    )
    detector = SurpriseDetector(model, torch.arange(10.0), false_alarm_rate=0.5)
    detector.update(torch.from_numpy(played.frames[0, 1]))
    for look, surprises in enumerate(seen, start=1):
        reading = detector.update(
            torch.from_numpy(played.frames[look, 1]), torch.from_numpy(blocks[look - 1][1]).float().clamp(-1, 1)
        )
        assert float(surprises[1]) == pytest.approx(reading.surprise, rel=1e-4)
    assert len(seen) == 19


def test_rows_of_several_seeds_are_added_up():
    row = Success(name="model", protocol="near", num_successes=9, num_tasks=10, num_plans=20, cpu_s=4.0)
    both = pooled([[row], [replace(row, num_successes=6, num_plans=30)]])[0]
    assert (both.num_successes, both.num_tasks, both.rate) == (15, 20, 0.75)
    assert both.cpu_s_per_plan == pytest.approx(8 / 50)
    assert "15 of 20" in both.line()


def test_bars_take_the_worst_seed_and_the_best_way():
    health = {"embedding_std": 1.0, "effective_rank": 13.0, "mean_probe_r2": 0.98}
    bars = health_bars([health, health | {"effective_rank": 11.0, "embedding_std": 1.2}])
    assert [bar.is_met for bar in bars] == [False, False, True]

    def row(name, protocol, count):
        return Success(name=name, protocol=protocol, num_successes=count, num_tasks=100, num_plans=1, cpu_s=1.0)

    rows = [
        row("model", "near", 95), row("floor", "near", 92),
        row("model", "opposite", 10), row("model, by map", "opposite", 70), row("floor", "opposite", 5),
    ]  # fmt: skip
    assert [bar.is_met for bar in success_bars(rows, model="model", control="floor")] == [True, False, True, True]
    surprise = {"false_alarms": {"rate": 0.055}, "wanted_rate": 0.05}
    surprise |= {"events": {"teleport": {"auroc": 0.995}, "dynamics": {"auroc": 0.89}}}
    low = surprise | {"false_alarms": {"rate": 0.035}}
    assert [bar.is_met for bar in surprise_bars([surprise])] == [True, True, False]
    assert "-30.0%" in surprise_bars([surprise, low])[0].line()


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
        control_steps=40,
        surprise=SurpriseConfig(num_calibration=10, num_undisturbed=6, num_pairs=6, false_alarm_rate=0.1),
    )
    found = reproduce(tmp_path, scale)
    names = {(row["protocol"], row["name"]) for row in found.numbers["success"]}
    for protocol in ("near", "opposite"):
        for name in ("random", "lambda = 0", "world model", "expert"):
            assert (protocol, name) in names
    assert {("near", "world model, by map"), ("opposite", "world model, by map")} <= names
    training = found.numbers["by_seed"][0]["training"]
    assert training["lambda = 0"]["why_collapsed"] is not None
    assert training["lambda = 0"]["num_steps"] == 40
    assert training["world model"]["why_collapsed"] is None
    with image.open(tmp_path / "plan.gif") as animation:
        assert animation.n_frames >= 2
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "missed" in page
    for name in ("plan.gif", "surprise.png", "health.png"):
        assert (tmp_path / name).stat().st_size > 500
        assert name in page
    stages = []
    assert reproduce(tmp_path, scale, report=lambda stage, *_: stages.append(stage)).numbers == found.numbers
    assert set(stages) == {"collect"}  # what was measured is kept
