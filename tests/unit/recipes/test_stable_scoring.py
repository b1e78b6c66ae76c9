"""Our models as stable-worldmodel's planners want them; scored by it where it is installed."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from simulated.worlds import TINY_COLLECT, tiny_dataset, tiny_train

from forerun.core.control import History
from forerun.core.errors import ConfigError
from forerun.data.normalizer import Normalizer
from forerun.envs.pixel_tasks import pixel_task
from forerun.planning.objective import GoalDistance
from forerun.recipes.world.agents import RecordedAgent, ceiling_of
from forerun.recipes.world.evaluation import Contender
from forerun.recipes.world.goal_tasks import held_out_tasks
from forerun.recipes.world.planners import PlanConfig
from forerun.recipes.world.play import play
from forerun.recipes.world.stable_scoring import ActionScaler, LatentCost, score_by_stable_worldmodel
from forerun.recipes.world.wishes import goal_wish
from forerun.worldmodels.collection import record_episodes
from forerun.worldmodels.jepa.train import fresh_model

PLAN = PlanConfig(horizon=5, execute_horizon=5, num_samples=4, num_elites=2, num_iterations=1)


@pytest.fixture(scope="module")
def model():
    model = fresh_model(tiny_dataset().episodes, tiny_train()).eval()
    generator = torch.Generator().manual_seed(0)
    shift, scale = torch.randn(10, generator=generator), 0.5 + torch.rand(10, generator=generator)
    model.action_normalizer = Normalizer(shift, scale)
    return model


def test_actions_scaled_one_by_one_have_the_spread_of_all_places_in_a_block(model):
    scaler = ActionScaler.of_model(model, block=5)
    generator = torch.Generator().manual_seed(1)
    blocks = model.action_normalizer.inverse(torch.randn(20_000, 10, generator=generator)).reshape(-1, 2).numpy()
    np.testing.assert_allclose(scaler.transform(blocks).mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(scaler.transform(blocks).std(axis=0), 1, atol=0.03)
    np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(blocks)), blocks, atol=1e-5)


def test_a_cost_is_the_squared_distance_at_the_end_of_what_the_actions_mean(model):
    scaler = ActionScaler.of_model(model, block=5)
    pixels = torch.from_numpy(tiny_dataset().episodes.pixels)
    starts, goals = pixels[:2], pixels[5:7]
    candidates = torch.randn(2, 3, 4, 10, generator=torch.Generator().manual_seed(2))
    info = {
        "pixels": starts[:, None, None].expand(2, 3, 1, -1, -1, -1),
        "goal": goals[:, None, None].expand(2, 3, 1, -1, -1, -1),
    }
    costs = LatentCost(model, scaler).get_cost(info, candidates)
    raw = candidates.unflatten(-1, (5, 2)) * torch.from_numpy(scaler.scale) + torch.from_numpy(scaler.shift)
    history = History.of_present(model.encode_all(starts), action_dim=10)
    actions = model.action_normalizer(raw.flatten(-2).float())
    states = model.rollout(history, actions, generator=torch.Generator())
    wanted = GoalDistance(model.encode_all(goals)).score(history, states, actions)
    torch.testing.assert_close(costs, wanted, rtol=1e-4, atol=1e-6)
    info["pixels"] = info["goal"]  # embeddings are kept in the dictionary, as its own models do
    torch.testing.assert_close(LatentCost(model, scaler).get_cost(info, candidates), costs)


def test_a_cost_may_be_the_way_over_a_map(model):
    episodes = tiny_dataset().episodes
    scaler, pixels = ActionScaler.of_model(model, block=5), torch.from_numpy(episodes.pixels)
    candidates = torch.randn(2, 3, 4, 10, generator=torch.Generator().manual_seed(2))
    frames = {"pixels": pixels[:2], "goal": pixels[5:7]}
    info = {name: frame[:, None, None].expand(2, 3, 1, -1, -1, -1) for name, frame in frames.items()}
    wish = goal_wish(model, episodes, "landmarks")
    costs = LatentCost(model, scaler, wish=wish).get_cost(info, candidates)
    raw = candidates.unflatten(-1, (5, 2)) * torch.from_numpy(scaler.scale) + torch.from_numpy(scaler.shift)
    history = History.of_present(model.encode_all(pixels[:2]), action_dim=10)
    actions = model.action_normalizer(raw.flatten(-2).float())
    states = model.rollout(history, actions, generator=torch.Generator())
    wanted = wish(model.encode_all(pixels[5:7])).score(history, states, actions)
    torch.testing.assert_close(costs, -wanted, rtol=1e-4, atol=1e-6)


def test_what_it_has_no_word_for_is_refused(model):
    episodes = tiny_dataset().episodes
    tasks = held_out_tasks(episodes, "near", num_tasks=2, frame_skip=5, seed=0)
    contenders = {"model": Contender(model=model, seen=episodes, config=PLAN)}
    with pytest.raises(ConfigError, match="scores push-t and stable-two-room"):
        score_by_stable_worldmodel(contenders, tasks)
    elsewhere = replace(tasks, task=pixel_task("push-t"))
    contenders["other"] = replace(contenders["model"], config=replace(PLAN, is_bounded=True, returns="best"))
    with pytest.raises(ConfigError, match="other: stable-worldmodel's planner is plain, and has no returns and no is_"):
        score_by_stable_worldmodel(contenders, elsewhere)


@pytest.mark.skipif(find_spec("stable_worldmodel") is None, reason="the extra stable-worlds is not installed")
@pytest.mark.parametrize("task", ["stable-two-room", "push-t"])
def test_it_scores_tasks_of_its_worlds(task):
    recording = replace(TINY_COLLECT, task=task, num_episodes=4, expert_share=0.5, random_share=0.0)
    episodes = record_episodes(recording, range(4))
    model = fresh_model(episodes, tiny_train()).eval()
    tasks = held_out_tasks(episodes, "near", num_tasks=3, frame_skip=5, seed=0, task=task)
    name, ceiling = ceiling_of(tasks)
    assert name == "recorded actions"
    assert isinstance(ceiling, RecordedAgent)
    assert play(tasks, ceiling).success_rate > 0.6
    plain = Contender(model=model, seen=episodes, config=PLAN)
    by_map = replace(plain, config=replace(PLAN, goal="landmarks"))
    rows = score_by_stable_worldmodel({"model": plain, "model, by map": by_map}, tasks)
    assert [row.name.removesuffix(", by stable-worldmodel") for row in rows[:3]] == ["random", "model", "model, by map"]
    assert [row.num_tasks for row in rows] == [3] * (4 if task == "stable-two-room" else 3)
    if task == "stable-two-room":
        assert rows[-1].rate == 1.0
    assert len(score_by_stable_worldmodel({"model": plain}, tasks, has_bounds=False)) == 1
