"""What any ``Dynamics`` keeps to, whatever predicts."""

from dataclasses import replace

import pytest
import torch

from forerun.core.control import History
from forerun.core.generator import keyed_generator
from forerun.envs.control_dynamics import FaultyDynamics, TrueDynamics
from forerun.envs.control_tasks import control_task
from forerun.recipes.mpc.collect import collect
from forerun.recipes.mpc.prepare import trainer_of
from forerun.worldmodels.diffusion.train import DmpcTrainingConfig

TASK = replace(control_task("double-integrator"), num_steps=10, horizon=4)


def true():
    return TASK, TrueDynamics(TASK.transition, bounds=TASK.bounds)


def told_of_a_damage():
    task, healthy = true()
    return task, FaultyDynamics(healthy, task.defect("biased"), bounds=task.bounds)


def trainer():
    training = DmpcTrainingConfig(num_steps=1, batch_size=4)
    return trainer_of(TASK, collect(TASK, num_episodes=4, seed=0), scale="smoke", training=training)


def diffusion():
    return TASK, trainer().dynamics()


def one_step():
    return TASK, trainer().one_step()


def simulator():
    pytest.importorskip("mujoco")
    pytest.importorskip("imageio")  # Gymnasium's MuJoCo environments import it
    task = control_task("halfcheetah")
    return task, task.simulator()


ALL = [true, told_of_a_damage, diffusion, one_step, simulator]


@pytest.fixture(scope="module", params=ALL, ids=lambda build: build.__name__)
def case(request):
    """A dynamics, two presents, and three candidates for each, some outside the box."""
    task, model = request.param()
    present = task.make_env(2).reset([0, 1])
    shape = (2, 3, TASK.horizon, task.action_dim)
    actions = 4 * torch.rand(shape, generator=keyed_generator(0)) - 2
    return model, History.of_present(present, action_dim=task.action_dim), actions


def rollout(case, actions=None):
    model, history, given = case
    return model.rollout(history, given if actions is None else actions, generator=keyed_generator(5))


def test_a_state_follows_each_action_and_is_finite(case):
    model, history, actions = case
    states = rollout(case)
    assert states.shape == (*actions.shape[:3], history.present.shape[-1])
    assert states.dtype == torch.float32
    assert bool(states.isfinite().all())
    assert model.action_dim == actions.shape[-1]


def test_a_future_does_not_depend_on_the_other_candidates(case):
    actions = case[2].clone()
    actions[:, 1:] = 0.3
    actions[1] = -0.1
    assert torch.allclose(rollout(case, actions)[0, 0], rollout(case)[0, 0], atol=1e-5)
    assert not torch.allclose(rollout(case, actions)[0, 1], rollout(case)[0, 1], atol=1e-5)


def test_nothing_but_the_generator_changes(case):
    _, history, actions = case
    before = [part.clone() for part in (history.states, actions)]
    first = rollout(case)
    assert torch.equal(rollout(case), first)
    assert all(torch.equal(part, kept) for part, kept in zip((history.states, actions), before, strict=True))
