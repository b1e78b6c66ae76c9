"""The search for linear policies that data is collected with, and the batch that it runs in."""

import numpy as np
import pytest
import torch

from forerun.core.control import ActionBounds
from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator
from forerun.envs import control_walker2d as walker
from forerun.envs.control_ars import ArsConfig, search_linear_policies
from forerun.envs.control_env import ClosedFormEnv
from forerun.envs.control_tasks import control_task


def cart(num_envs):
    """Return carts at places from -1 to 1 that are paid for nearness to 0: the best policy goes against the place."""
    return ClosedFormEnv(
        num_envs,
        bounds=ActionBounds.symmetric(1),
        num_steps=20,
        start=lambda generator: 2 * torch.rand(1, generator=generator) - 1,
        transition=lambda states, actions: states + 0.2 * actions,
        reward=lambda before, actions, after: -after[..., 0].abs(),
    )


def test_a_search_finds_what_pays():
    config = ArsConfig(num_iterations=30, num_directions=8, num_top=4, step_size=0.1, noise_std=0.1, num_env_steps=20)
    first, *_, last = found = list(search_linear_policies(cart(16), config))
    assert not first.weights.any()
    assert last.weights[0, 0] < 0
    assert last.trial_return > 0.5 * first.trial_return
    assert last.num_seen == 29 * 16 * 20
    assert abs(last.mean[0]) < 0.2
    again = list(search_linear_policies(cart(16), config))
    assert [policy.trial_return for policy in again] == [policy.trial_return for policy in found]
    (gone_on,) = search_linear_policies(cart(16), ArsConfig(num_iterations=1, num_directions=8), start=last)
    assert np.array_equal(gone_on.weights, last.weights)


def test_a_search_counts_survival_only_if_told_to():
    returns = [
        next(
            search_linear_policies(
                cart(16), ArsConfig(num_iterations=1, num_directions=8, num_env_steps=10, survival_reward=paid)
            )
        ).trial_return
        for paid in (0.0, 1.0)
    ]
    assert returns[0] - returns[1] == pytest.approx(10.0, abs=1e-4)


def test_a_search_wants_a_batch_of_its_size():
    with pytest.raises(ConfigError, match="16 seeds for 4 environments"):
        next(search_linear_policies(cart(4), ArsConfig(num_directions=8)))


def test_walkers_stepped_together_are_those_of_gymnasium():
    pytest.importorskip("mujoco")
    pytest.importorskip("imageio")  # Gymnasium's MuJoCo environments import it
    seeds, batch, task = [0, 1, 2], walker.make_batch(3), control_task("walker2d")
    one_by_one = task.make_env(3)
    states = batch.reset(seeds)
    assert torch.allclose(states, one_by_one.reset(seeds), atol=1e-6)
    # The first falls early, its feet faster than a state shows; the others go on.
    push = torch.tensor([0.9, 0.05, -0.05])[:, None] * torch.ones(3, 6)
    noise = 0.02 * torch.randn(60, 3, 6, generator=keyed_generator(0))
    ended, totals, theirs = torch.zeros(3, dtype=torch.bool), torch.zeros(3), torch.zeros(3)
    for step in range(60):
        made, known = batch.step(push + noise[step]), one_by_one.step(push + noise[step])
        assert torch.allclose(made.states, known.states, atol=0.05)
        assert made.terminated.tolist() == known.terminated.tolist()
        # What the step of a fall pays is the task's own; a reward of states pays nothing for it.
        stands = ~made.terminated
        ended, totals, theirs = ended | made.terminated, totals + stands * made.rewards, theirs + stands * known.rewards
    assert ended.any()
    assert not ended.all()
    assert torch.allclose(totals, theirs, rtol=0.01, atol=0.1)
    still, again = batch.step(push), batch.step(push)
    assert torch.equal(still.states[ended], again.states[ended])
    assert not still.rewards[ended].any()
