"""Walker2d-v5: a planar walker with six joints that must not fall, simulated by MuJoCo through Gymnasium.

The data's behaviours are linear policies of growing skill (``walker2d_policies.json``, made by
``scripts/search_linear_policies.py walker2d``), with noise, as HalfCheetah's are.
"""

from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from forerun.core.control import ActionBounds
from forerun.envs.control_ars import LinearPolicy, load_policies, noisy_mixture
from forerun.envs.control_env import ActuatorFault
from forerun.envs.control_gymnasium import GymnasiumBatch
from forerun.envs.control_mujoco import MujocoBatch, MujocoDynamics, make_mujoco
from forerun.envs.control_task import ControlTask, Policy

STATE_NAMES: Final = (
    "height", "pitch", "right_thigh", "right_leg", "right_foot", "left_thigh", "left_leg", "left_foot",
    "x_velocity", "z_velocity", "pitch_velocity", "right_thigh_velocity", "right_leg_velocity", "right_foot_velocity",
    "left_thigh_velocity", "left_leg_velocity", "left_foot_velocity",
)  # fmt: skip
ACTION_NAMES: Final = ("right_thigh", "right_leg", "right_foot", "left_thigh", "left_leg", "left_foot")
NUM_STEPS: Final = 300
BOUNDS: Final = ActionBounds.symmetric(6)
SURVIVAL_REWARD: Final = 1.0
_X_VELOCITY: Final = STATE_NAMES.index("x_velocity")
_CONTROL_COST: Final = 1e-3
_HEIGHTS: Final = (0.8, 2.0)
_LARGEST_PITCH: Final = 1.0
_LARGEST_VELOCITY: Final = 10.0


def make_one() -> Any:
    """Return one environment of Gymnasium, which ends when the walker falls.

    Raises:
        MissingDependencyError: Gymnasium or MuJoCo is not installed.
    """
    return make_mujoco("Walker2d-v5", purpose="Walker2d", num_steps=NUM_STEPS)


def make_env(num_envs: int) -> GymnasiumBatch:
    """Return a batch of environments; see :func:`make_one` for what it raises."""
    return GymnasiumBatch(make_one, num_envs)


def is_upright(states: Float[Tensor, "*batch 17"]) -> Bool[Tensor, "*batch"]:
    """Return whether the walker has not fallen; an episode ends where it has."""
    height, pitch = states[..., 0], states[..., 1]
    return (height > _HEIGHTS[0]) & (height < _HEIGHTS[1]) & (pitch.abs() < _LARGEST_PITCH)


def reward(
    before: Float[Tensor, "*batch 17"], actions: Float[Tensor, "*batch 6"], after: Float[Tensor, "*batch 17"], /
) -> Float[Tensor, "*batch"]:
    """Return the forward speed, 1 for being upright, and a thousandth of the squared actions less.

    The mean of the speeds before and after stands in for the mean speed over the step. A predicted future goes on where
    the task would have ended: what is not upright is paid nothing there.
    """
    speed = 0.5 * (before[..., _X_VELOCITY] + after[..., _X_VELOCITY])
    return is_upright(after) * (speed + SURVIVAL_REWARD) - _CONTROL_COST * (actions**2).sum(dim=-1)


def linear_policies() -> tuple[LinearPolicy, ...]:
    """Return the policies of the search, from idle to the best that it found."""
    return load_policies("walker2d_policies.json")


def behaviour(num_envs: int, generator: torch.Generator) -> Policy:
    """Return a mixture of policies of every skill, each with noise of its own.

    Args:
        num_envs: Policies, drawn evenly over the search.
        generator: Of the choice and the noise.
    """
    return noisy_mixture(linear_policies(), BOUNDS, num_envs, generator=generator, largest_std=0.2)


def simulator(*, is_coarse: bool = False) -> MujocoDynamics:
    """Return MuJoCo itself as a world model.

    Args:
        is_coarse: See :class:`~forerun.envs.control_mujoco.MujocoDynamics`.
    """
    return MujocoDynamics(make_one, bounds=BOUNDS, largest_velocity=_LARGEST_VELOCITY, is_coarse=is_coarse)


def make_batch(num_envs: int, *, is_coarse: bool = False) -> MujocoBatch:
    """Return environments that are stepped together, for searches.

    Args:
        num_envs: How many.
        is_coarse: See :class:`~forerun.envs.control_mujoco.MujocoDynamics`.
    """
    return MujocoBatch(
        make_one,
        num_envs,
        dynamics=simulator(is_coarse=is_coarse),
        bounds=BOUNDS,
        reward=reward,
        num_steps=NUM_STEPS,
        goes_on=is_upright,
    )


def task() -> ControlTask:
    """Return the task, in episodes of at most 300 steps."""
    return ControlTask(
        name="walker2d",
        summary="walk without falling: six joints, contact, early ends; data of augmented random search",
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        bounds=BOUNDS,
        num_steps=NUM_STEPS,
        discount=0.99,
        horizon=32,
        num_episodes=400,
        make_env=make_env,
        behaviour=behaviour,
        reward=reward,
        simulator=simulator,
        defects={"clipped-ankle": ActuatorFault(indices=(2,), limit=0.5)},
    )
