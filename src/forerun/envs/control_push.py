"""Push of Meta-World: a robot's hand grips a puck and drags it to a goal; the package's scripted expert with noise.

Of the package's 39 numbers a state keeps those that change and matter: hand, gripper, puck and goal.
"""

import warnings
from functools import cache
from importlib import import_module
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds
from forerun.core.dependencies import import_optional
from forerun.envs.control_env import ActuatorFault
from forerun.envs.control_goals import Arrival
from forerun.envs.control_gymnasium import GymnasiumBatch
from forerun.envs.control_task import ControlTask, Policy, SmoothNoise

STATE_NAMES: Final = (
    "hand_x", "hand_y", "hand_z", "gripper", "puck_x", "puck_y", "puck_z", "goal_x", "goal_y", "goal_z",
)  # fmt: skip
ACTION_NAMES: Final = ("x", "y", "z", "grip")
HAND: Final = (0, 1, 2)
NUM_STEPS: Final = 100
BOUNDS: Final = ActionBounds.symmetric(4)
ARRIVAL: Final = Arrival(moving=(4, 5, 6), goal=(7, 8, 9), radius=0.05)
"""The package's own radius."""
_PURPOSE: Final = "Meta-World's push"
_KEPT: Final = (*range(7), 36, 37, 38)
"""Places of a state's numbers in an observation of the package."""
_NUM_OBSERVED: Final = 39
_WELD: Final = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 5.0)
"""The package's own: no offset, no rotation, five times the stiffness of rotations."""
_ERRATIC: Final = 0.2
"""Share of the behaviours that the expert has no part in."""
_LEAST_HASTE: Final = 0.85
"""At 0.6 of its speed the expert is nowhere near the goal when the time is up; at its own it needs 50 to 70 steps."""
_LARGEST_STD: Final = 0.15
"""Of an expert's noise; with 0.3 it hardly ever stands over the puck as precisely as it wants to before it grips."""


class PushVector:
    """The environment with Gymnasium's signatures and the numbers that matter; the reward is 1 with the puck there.

    Raises:
        MissingDependencyError: Meta-World is not installed.
    """

    def __init__(self) -> None:
        boxes = import_optional("gymnasium.spaces", extra="worlds", purpose=_PURPOSE)
        import_optional("metaworld", extra="worlds", purpose=_PURPOSE)
        self._env: Any = _environment_class()()
        # As the package's own goal-observable environments are set up, but with a goal drawn at every reset. Bounds
        # that hide the goal are kept from the first look at them.
        self._env._partially_observable = False
        vars(self._env).pop("sawyer_observation_space", None)
        self._env._freeze_rand_vec = False
        self._env.seeded_rand_vec = True
        self._env._set_task_called = True
        self.action_space = self._env.action_space
        self.observation_space = boxes.Box(-np.inf, np.inf, (len(STATE_NAMES),), dtype=np.float64)
        self._num_done = 0

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode with a puck and a goal in new places."""
        if seed is not None:
            self._env.seed(seed)
        seen, info = self._env.reset()
        self._num_done = 0
        return seen[list(_KEPT)], info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the hand by at most a centimetre along each axis, and the gripper."""
        seen, _, _, _, info = self._env.step(action)
        self._num_done += 1
        return seen[list(_KEPT)], float(info["success"]), False, self._num_done >= NUM_STEPS, info

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


@cache
def _environment_class() -> Any:
    mujoco = import_optional("mujoco", extra="worlds", purpose=_PURPOSE)
    package: Any = import_module("metaworld.envs.sawyer_push_v3")

    class Push(package.SawyerPushEnvV3):
        """The package's environment, with the weld of hand and target set as MuJoCo 4 has it: with a number more."""

        def reset_mocap_welds(self) -> None:
            is_weld = self.model.eq_type == mujoco.mjtEq.mjEQ_WELD.value
            self.model.eq_data[is_weld, : len(_WELD)] = _WELD

    return Push


def make_env(num_envs: int) -> GymnasiumBatch:
    """Return a batch of environments; see :class:`PushVector` for what it raises."""
    return GymnasiumBatch(PushVector, num_envs)


@cache
def _expert() -> Any:
    import_optional("metaworld", extra="worlds", purpose=_PURPOSE)
    return import_module("metaworld.policies.sawyer_push_v3_policy").SawyerPushV3Policy()


def expert_actions(states: Float[Tensor, "envs 10"]) -> Float[Tensor, "envs 4"]:
    """Return what the package's scripted policy does, inside the box of actions."""
    observed = np.zeros((len(states), _NUM_OBSERVED))
    observed[:, list(_KEPT)] = states.numpy()
    with warnings.catch_warnings():
        # The script asks for more than the box has, on purpose, and says so at every step.
        warnings.filterwarnings("ignore", message="Constant")
        actions = np.stack([_expert().get_action(row) for row in observed])
    return BOUNDS.clamp(torch.from_numpy(actions).float())


def behaviour(num_envs: int, generator: torch.Generator) -> Policy:
    """Return a mixture of experts, hasty and hesitant, steady and shaky, and of random motion.

    Args:
        num_envs: Behaviours.
        generator: Of all of it, and of the noise.
    """
    is_expert = (torch.rand((num_envs, 1), generator=generator) >= _ERRATIC).float()
    haste = _LEAST_HASTE + (1 - _LEAST_HASTE) * torch.rand((num_envs, 1), generator=generator)
    # The grip is a force: shaken, the puck is lost.
    std = _LARGEST_STD * torch.rand((num_envs, 1), generator=generator) * torch.tensor([1.0, 1.0, 1.0, 0.0])
    shaky = SmoothNoise((num_envs, 4), std=std, memory=0.5, generator=generator)
    erratic = SmoothNoise((num_envs, 4), std=0.7, memory=0.8, generator=generator)

    def act(states: Float[Tensor, "envs 10"], env_step: int, /) -> Float[Tensor, "envs 4"]:
        scripted = expert_actions(states)
        scripted = torch.cat([haste * scripted[:, :3], scripted[:, 3:]], dim=1) + shaky.next()
        return BOUNDS.clamp(torch.where(is_expert > 0, scripted, erratic.next()))

    return act


def task() -> ControlTask:
    """Return the task, in episodes of 100 steps."""
    return ControlTask(
        name="push",
        summary="Meta-World: grip a puck and drag it to a goal; scripted experts, noise, random motion",
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        bounds=BOUNDS,
        num_steps=NUM_STEPS,
        discount=0.97,
        horizon=16,
        num_episodes=240,
        make_env=make_env,
        behaviour=behaviour,
        reward=ARRIVAL.reward,
        has_succeeded=ARRIVAL.is_there,
        goal=ARRIVAL.goal,
        most_envs=20,
        defects={"weak": ActuatorFault(indices=(1,), gain=0.4)},
    )
