"""The joint baseline: it draws what fits together, and is ranked like everything else."""

import pytest
import torch

from forerun.core.control import ActionBounds, History
from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator
from forerun.data.normalizer import Normalizer
from forerun.data.windows import Window
from forerun.models.denoiser import DenoiserConfig
from forerun.planning.joint_ranking import JointRanking
from forerun.planning.objective import FinalReward
from forerun.worldmodels.diffusion.config import DiffusionConfig
from forerun.worldmodels.diffusion.frame import Frame
from forerun.worldmodels.diffusion.joint import JointDiffusion
from forerun.worldmodels.diffusion.sampler import SamplerConfig

BOUNDS = ActionBounds.symmetric(1, 2.0)
HISTORY = History.of_present(torch.tensor([[1.0], [-1.0]]), action_dim=1)


def window(generator, batch=64):
    """The state moves by the action at each of two steps; the actions are all high or all low."""
    actions = torch.randint(0, 2, (batch, 1, 1), generator=generator).float().mul(2).sub(1).expand(-1, 2, -1)
    states = torch.randn(batch, 1, 1, generator=generator)
    return Window(
        states=states,
        past_actions=torch.zeros(batch, 0, 1),
        actions=actions,
        following=states + actions.cumsum(dim=1),
        is_real=torch.ones(batch, 2, dtype=torch.bool),
    )


def test_states_and_actions_are_drawn_together():
    torch.manual_seed(0)
    frame = Frame.of_data(torch.randn(50, 1), BOUNDS, history=1)
    config = DiffusionConfig(
        denoiser=DenoiserConfig(width=48, depth=2), sampler=SamplerConfig(num_inference_steps=8, clip=5.0)
    )
    model = JointDiffusion(config, frame, Normalizer(torch.zeros(2, 1), torch.tensor([[1.0], [2.0]])))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(250):
        loss = model.loss(window(keyed_generator(0, step)), generator=keyed_generator(1, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    actions, states = model.draw(HISTORY, 200, generator=keyed_generator(2))
    assert actions.shape == (2, 200, 2, 1)
    assert states.shape == (2, 200, 2, 1)
    moves = states - HISTORY.present[:, None, None]
    is_up, has_moved_up = actions[..., 0, 0] > 0, moves[..., 1, 0] > 0
    assert float((is_up == has_moved_up).float().mean()) > 0.97
    assert 0.3 < float(is_up.float().mean()) < 0.7
    assert float(actions.abs().max()) <= 2.0


class Coin:
    """Draws actions of 1 or 3 that lead to the state 10 or 30, whatever was before."""

    def draw(self, history, num_samples, *, generator):
        luck = 1 + 2 * torch.randint(0, 2, (history.num_envs, num_samples, 2, 1), generator=generator).float()
        return luck, 10 * luck


def ranking(num_samples):
    objective = FinalReward(lambda states: -states[..., 0])
    return JointRanking(Coin(), objective=objective, num_samples=num_samples, bounds=BOUNDS)


def test_the_best_draw_is_the_plan():
    """All twenty draws of an environment are alike with a chance of 2e-6."""
    plan = ranking(20).plan(HISTORY, generator=keyed_generator(0))
    assert plan.actions[:, -1, 0].tolist() == [1.0, 1.0]
    assert plan.scores.tolist() == [-10.0, -10.0]
    assert float(plan.future_actions.max()) == 2.0, "clamped to the box"
    assert plan.num_candidates == plan.futures.shape[1] == 20


def test_there_must_be_something_to_draw():
    with pytest.raises(ConfigError, match="num_samples=0"):
        ranking(0)
