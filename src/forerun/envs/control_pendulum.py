"""Swing up a pendulum with a motor too weak to lift it at once; dynamic programming on a grid gives the optimum.

Equations and rewards are those of Gymnasium's Pendulum-v1; a state is (cos, sin, angular velocity), upright at 0.
"""

import math
from functools import cache
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds
from forerun.envs.control_env import ActuatorFault, ClosedFormEnv
from forerun.envs.control_optimum import GridOptimum, solve_on_grid
from forerun.envs.control_task import ControlTask, Policy, SmoothNoise

STATE_NAMES: Final = ("cos", "sin", "velocity")
ACTION_NAMES: Final = ("torque",)
NUM_STEPS: Final = 100
BOUNDS: Final = ActionBounds.symmetric(1, 2.0)
_STEP_S: Final = 0.05
_GRAVITY: Final = 10.0
_MAX_SPEED: Final = 8.0


def start(generator: torch.Generator) -> Float[Tensor, "3"]:
    """Draw a first state: any angle, a velocity of at most 1 rad/s."""
    drawn = 2 * torch.rand(2, generator=generator) - 1
    return _observed(torch.stack([math.pi * drawn[0], drawn[1]]))


def transition(states: Float[Tensor, "*batch 3"], actions: Float[Tensor, "*batch 1"], /) -> Float[Tensor, "*batch 3"]:
    """Return the states one step later; the equations are Gymnasium's."""
    return _observed(_moved(_angles(states), actions))


def reward(
    before: Float[Tensor, "*batch 3"], actions: Float[Tensor, "*batch 1"], after: Float[Tensor, "*batch 3"], /
) -> Float[Tensor, "*batch"]:
    """Return minus (angle² + 0.1 velocity² + 0.001 torque²), on the state before the action."""
    return _paid(_angles(before), actions)


def make_env(num_envs: int) -> ClosedFormEnv:
    """Return a batch of environments."""
    return ClosedFormEnv(
        num_envs, bounds=BOUNDS, num_steps=NUM_STEPS, start=start, transition=transition, reward=reward
    )


def best_action(states: Float[Tensor, "envs 3"], env_step: int) -> Float[Tensor, "envs 1"]:
    """Return the best control that a grid of 121 angles, 81 velocities and 41 torques knows.

    Args:
        states: The present.
        env_step: Steps already done.
    """
    optimum = _optimum()
    tried = torch.linspace(-2.0, 2.0, 41)
    angles = _angles(states)[:, None].expand(-1, len(tried), -1)
    actions = tried[None, :, None].expand(len(states), -1, -1)
    following = optimum.value(_moved(angles, actions), min(env_step + 1, NUM_STEPS))
    return tried[(_paid(angles, actions) + following).argmax(dim=1)][:, None]


@cache
def _optimum() -> GridOptimum:
    angles = torch.arange(121) * (2 * math.pi / 121) - math.pi
    velocities = torch.linspace(-_MAX_SPEED, _MAX_SPEED, 81)
    return solve_on_grid(
        axes=(angles, velocities),
        is_periodic=True,
        actions=torch.linspace(-2.0, 2.0, 15),
        num_steps=NUM_STEPS,
        transition=_moved,
        reward=_paid,
    )


def _angles(states: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 2"]:
    return torch.stack([torch.atan2(states[..., 1], states[..., 0]), states[..., 2]], dim=-1)


def _observed(angles: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 3"]:
    return torch.stack([angles[..., 0].cos(), angles[..., 0].sin(), angles[..., 1]], dim=-1)


def _moved(angles: Float[Tensor, "*batch 2"], actions: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 2"]:
    angle, velocity = angles[..., 0], angles[..., 1]
    acceleration = 1.5 * _GRAVITY * angle.sin() + 3.0 * actions[..., 0]
    velocity = (velocity + acceleration * _STEP_S).clamp(-_MAX_SPEED, _MAX_SPEED)
    return torch.stack([angle + velocity * _STEP_S, velocity], dim=-1)


def _paid(angles: Float[Tensor, "*batch 2"], actions: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch"]:
    wrapped = torch.remainder(angles[..., 0] + math.pi, 2 * math.pi) - math.pi
    return -(wrapped**2 + 0.1 * angles[..., 1] ** 2 + 0.001 * actions[..., 0] ** 2)


def behaviour(num_envs: int, generator: torch.Generator) -> Policy:
    """Return a mixture of energy pumps with a catch at the top, each with strengths of its own, and with noise.

    Args:
        num_envs: Controllers.
        generator: Of strengths and noise.
    """
    pump, catch, damping = (torch.rand((num_envs,), generator=generator) for _ in range(3))
    std = 1.2 * torch.rand((num_envs, 1), generator=generator)
    noise = SmoothNoise((num_envs, 1), std=std, memory=0.8, generator=generator)

    def act(states: Float[Tensor, "envs 3"], env_step: int, /) -> Float[Tensor, "envs 1"]:
        angle, velocity = _angles(states).unbind(dim=-1)
        energy = velocity**2 / 6 + 0.5 * _GRAVITY * (angle.cos() - 1)
        pumped = -2.0 * pump * energy * velocity.sign()
        caught = -(5 + 15 * catch) * angle - (1 + 4 * damping) * velocity
        chosen = torch.where(angle.cos() > 0.9, caught, pumped)
        return BOUNDS.clamp(chosen[:, None] + noise.next())

    return act


def task() -> ControlTask:
    """Return the task."""
    return ControlTask(
        name="pendulum",
        summary="swing up with a weak motor; dynamic programming on a grid gives the optimum",
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        bounds=BOUNDS,
        num_steps=NUM_STEPS,
        discount=0.97,
        horizon=16,
        num_episodes=300,
        make_env=make_env,
        behaviour=behaviour,
        reward=reward,
        transition=transition,
        best_policy=best_action,
        defects={"clipped": ActuatorFault(indices=(0,), limit=1.0)},
    )
