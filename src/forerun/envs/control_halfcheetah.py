"""HalfCheetah-v5: a planar runner with six joints, simulated by MuJoCo through Gymnasium.

The data's behaviours are linear policies of growing skill, found by augmented random search and kept in the package
(``halfcheetah_policies.json``, made by ``scripts/search_halfcheetah_policies.py``), with noise.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds
from forerun.core.dependencies import import_optional
from forerun.envs.control_ars import LinearPolicy
from forerun.envs.control_env import ActuatorFault
from forerun.envs.control_gymnasium import GymnasiumBatch
from forerun.envs.control_task import ControlTask, Policy, SmoothNoise

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
    gymnasium = import_optional("gymnasium", extra="worlds", purpose="HalfCheetah")
    mujoco = import_optional("mujoco", extra="worlds", purpose="HalfCheetah")
    with _without_deprecations(mujoco):
        return gymnasium.make("HalfCheetah-v5", max_episode_steps=NUM_STEPS)


@contextmanager
def _without_deprecations(mujoco: Any) -> Iterator[None]:
    """Drop MuJoCo's messages on old words in Gymnasium's model file, one for each environment that is made."""

    def tell(text: str) -> None:
        if "deprecated" not in text:
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(tell)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


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
    known = linear_policies()
    chosen = [known[int(index)] for index in torch.randint(len(known), (num_envs,), generator=generator)]
    weights = torch.from_numpy(np.stack([policy.weights / policy.std for policy in chosen])).float()
    means = torch.from_numpy(np.stack([policy.mean for policy in chosen])).float()
    std = 0.3 * torch.rand((num_envs, 1), generator=generator)
    noise = SmoothNoise((num_envs, 6), std=std, memory=0.5, generator=generator)

    def act(states: Float[Tensor, "envs 17"], env_step: int, /) -> Float[Tensor, "envs 6"]:
        return BOUNDS.clamp(torch.einsum("eas,es->ea", weights, states - means) + noise.next())

    return act


@cache
def linear_policies() -> tuple[LinearPolicy, ...]:
    """Return the policies of the search, from idle to the best that it found."""
    text = files("forerun.envs").joinpath("halfcheetah_policies.json").read_text(encoding="utf-8")
    return tuple(
        LinearPolicy(
            weights=np.array(record["weights"]),
            mean=np.array(record["mean"]),
            std=np.array(record["std"]),
            trial_return=record["trial_return"],
            num_seen=record["num_seen"],
        )
        for record in json.loads(text)["policies"]
    )


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
        defect=ActuatorFault(indices=(2,), limit=0.5),
    )
