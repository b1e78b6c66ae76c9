"""The model over patch tokens: what it sees, what it learns, planning with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated.worlds import tiny_dataset

from forerun.core.control import History
from forerun.recipes.world.agents import PlanningAgent
from forerun.recipes.world.goal_tasks import held_out_tasks
from forerun.recipes.world.planners import PlanConfig
from forerun.worldmodels.token_world import NUM_PATCHES, TokenWorldConfig, train_token_world

TINY = TokenWorldConfig(width=8, num_encoder_layers=1, num_blocks=1, num_heads=2, mlp_width=16, num_steps=12)


@pytest.fixture(scope="module")
def episodes():
    return tiny_dataset().episodes


@pytest.fixture(scope="module")
def world(episodes):
    return train_token_world(episodes, replace(TINY, batch_size=4))


def test_a_frame_is_as_many_tokens_as_in_dino_wm(world, episodes):
    assert NUM_PATCHES == 196
    latents = world.encode_all(torch.from_numpy(episodes.pixels[:3]))
    assert latents.shape == (3, 196 * 8)
    assert not any(parameter.requires_grad for parameter in world.encoder.parameters())


def test_no_frame_sees_a_later_one(world):
    tokens, actions = torch.randn(1, 3, NUM_PATCHES, 8), torch.randn(1, 3, world.action_dim)
    changed = tokens.clone()
    changed[:, 2] += 1.0
    with torch.no_grad():
        before, after = world.predictor(tokens, actions), world.predictor(changed, actions)
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_a_roll_out_is_step_by_step_prediction_in_sliding_windows(world):
    states, actions = torch.randn(2, 1, NUM_PATCHES * 8), torch.randn(2, 3, 4, world.action_dim)
    history = History(states=states, actions=torch.zeros(2, 0, world.action_dim))
    found = world.rollout(history, actions, generator=torch.Generator())
    assert found.shape == (2, 3, 4, NUM_PATCHES * 8)
    tokens = states[1].unflatten(1, (NUM_PATCHES, 8))[None]
    with torch.no_grad():
        for step in range(4):
            start = max(0, step + 1 - 3)
            following = world.predictor(tokens[:, start:], actions[1, 2, start : step + 1][None])[:, -1:]
            tokens = torch.cat([tokens, following], dim=1)
    torch.testing.assert_close(found[1, 2], tokens[0, 1:].flatten(1), atol=1e-5, rtol=1e-4)


def test_training_beats_standing_still(episodes):
    better = train_token_world(episodes, replace(TINY, num_steps=30, learning_rate=5e-3, batch_size=4))
    rows = np.setdiff1d(np.arange(len(episodes.pixels) - 1), episodes.last_rows)[:64]
    tokens = better.encode_all(torch.from_numpy(episodes.pixels)).unflatten(1, (NUM_PATCHES, 8))
    actions = better.action_normalizer(torch.from_numpy(episodes.actions[rows]))
    with torch.no_grad():
        predicted = better.predictor(tokens[rows, None], actions[:, None])[:, 0]
    error = (predicted - tokens[rows + 1]).square().mean()
    assert error < 0.99 * (tokens[rows] - tokens[rows + 1]).square().mean()


def test_a_planner_takes_it(world, episodes):
    tasks = held_out_tasks(episodes, "near", num_tasks=2, frame_skip=5, seed=0)
    agent = PlanningAgent(
        world, tasks, PlanConfig(horizon=2, execute_horizon=2, num_samples=4, num_elites=2, num_iterations=1)
    )
    blocks = agent.act(tasks.worlds(), tasks.goal_pixels, np.arange(2))
    assert blocks.shape == (2, 10)
    assert np.isfinite(blocks).all()
