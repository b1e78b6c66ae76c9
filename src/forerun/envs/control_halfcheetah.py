"""HalfCheetah-v5: a planar runner with six joints, simulated by MuJoCo through Gymnasium.

The data's behaviours are linear policies of growing skill, found by augmented random search and kept in the package
(``halfcheetah_policies.json``, made by ``scripts/search_linear_policies.py halfcheetah``), with noise.
"""

from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds
from forerun.envs.control_ars import LinearPolicy, load_policies, noisy_mixture
from forerun.envs.control_env import ActuatorFault
from forerun.envs.control_gymnasium import GymnasiumBatch
from forerun.envs.control_mujoco import MujocoDynamics, make_mujoco
from forerun.envs.control_task import ControlTask, Policy

STATE_NAMES: Final = (
    "height", "pitch", "back_thigh", "back_shin", "back_foot", "front_thigh", "front_shin", "front_foot",
    "x_velocity", "z_velocity", "pitch_velocity", "back_thigh_velocity", "back_shin_velocity", "back_foot_velocity",
    "front_thigh_velocity", "front_shin_velocity", "front_foot_velocity",
)  # fmt: skip
ACTION_NAMES: Final = ("back_thigh", "back_shin", "back_foot", "front_thigh", "front_shin", "front_foot")
NUM_STEPS: Final = 300
BOUNDS: Final = ActionBounds.symmetric(6)
_X_VELOCITY: Final = STATE_NAMES.index("x_velocity")
_CONTROL_COST: Final = 0.1


def make_one() -> Any:
    """Return one environment of Gymnasium, which never ends by itself.

    Raises:
        MissingDependencyError: Gymnasium or MuJoCo is not installed.
    """
    return make_mujoco("HalfCheetah-v5", purpose="HalfCheetah", num_steps=NUM_STEPS)


def make_env(num_envs: int) -> GymnasiumBatch:
    """Return a batch of environments; see :func:`make_one` for what it raises."""
    return GymnasiumBatch(make_one, num_envs)


def reward(
    before: Float[Tensor, "*batch 17"], actions: Float[Tensor, "*batch 6"], after: Float[Tensor, "*batch 17"], /
) -> Float[Tensor, "*batch"]:
    """Return the forward speed minus a tenth of the squared actions.

    The environment pays the mean speed over a step, which a state does not hold; the mean of the speeds before and
    after stands in for it.
    """
    speed = 0.5 * (before[..., _X_VELOCITY] + after[..., _X_VELOCITY])
    return speed - _CONTROL_COST * (actions**2).sum(dim=-1)


def behaviour(num_envs: int, generator: torch.Generator) -> Policy:
    """Return a mixture of policies of every skill, each with noise of its own.

    Args:
        num_envs: Policies, drawn evenly over the search.
        generator: Of the choice and the noise.
    """
    return noisy_mixture(linear_policies(), BOUNDS, num_envs, generator=generator)


def linear_policies() -> tuple[LinearPolicy, ...]:
    """Return the policies of the search, from idle to the best that it found."""
    return load_policies("halfcheetah_policies.json")


def simulator() -> MujocoDynamics:
    """Return MuJoCo itself as a world model."""
    return MujocoDynamics(make_one, bounds=BOUNDS)


def task() -> ControlTask:
    """Return the task, in episodes of 300 steps."""
    return ControlTask(
        name="halfcheetah",
        summary="run: six joints, contact; data of augmented random search",
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        bounds=BOUNDS,
        num_steps=NUM_STEPS,
        discount=0.99,
        horizon=16,
        num_episodes=400,
        make_env=make_env,
        behaviour=behaviour,
        reward=reward,
        simulator=simulator,
        defects={"clipped-foot": ActuatorFault(indices=(2,), limit=0.5)},
    )
