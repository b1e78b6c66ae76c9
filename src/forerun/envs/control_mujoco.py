"""What tasks of MuJoCo share: environments made without noise, and the simulator itself as a world model."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds, History
from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError


def make_mujoco(name: str, *, purpose: str, num_steps: int, registered_by: str | None = None) -> Any:
    """Return an environment of Gymnasium that MuJoCo simulates.

    Args:
        name: As it is registered.
        purpose: What needs it, for the message where a package is missing.
        num_steps: Steps after which an episode is truncated.
        registered_by: A package whose import registers the name; ``None``: Gymnasium has it.

    Raises:
        MissingDependencyError: Gymnasium, MuJoCo or that package is not installed.
    """
    gymnasium = import_optional("gymnasium", extra="worlds", purpose=purpose)
    mujoco = import_optional("mujoco", extra="worlds", purpose=purpose)
    if registered_by is not None:
        gymnasium.register_envs(import_optional(registered_by, extra="worlds", purpose=purpose))
    with without_deprecations(mujoco):
        return gymnasium.make(name, max_episode_steps=num_steps, disable_env_checker=True)


@contextmanager
def without_deprecations(mujoco: Any) -> Iterator[None]:
    """Drop MuJoCo's messages on old words in a model file, one for each environment that is made."""

    def tell(text: str) -> None:
        if "deprecated" not in text:
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(tell)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


class MujocoDynamics:
    """The simulator as a :class:`~forerun.core.protocols.Dynamics`: what a planner could reach with perfect foresight.

    For tasks whose state is every position but the first, how far the body has come, and every velocity. Nothing may
    depend on that first position. What a state does not hold, such as the solver's first guess of the forces, begins
    anew, so that predictions and task agree to the solver's tolerance until contacts amplify it.

    Args:
        make: Makes the task's environment; its model and its simulation steps for each action are taken.
        bounds: Actions are clamped to this box, as the task does.
        largest_velocity: Absolute value at which the task cuts the velocities that it shows; ``None``: it does not.

    Raises:
        ConfigError: The simulator's state has more than time, positions and velocities.
        MissingDependencyError: Gymnasium or MuJoCo is not installed.
    """

    def __init__(self, make: Callable[[], Any], *, bounds: ActionBounds, largest_velocity: float | None = None) -> None:
        self._mujoco = import_optional("mujoco", extra="worlds", purpose="the simulator as a world model")
        self._rollout = import_optional("mujoco.rollout", extra="worlds", purpose="the simulator as a world model")
        env = make().unwrapped
        self._model, self._frame_skip = env.model, int(env.frame_skip)
        self._data = self._mujoco.MjData(self._model)
        env.close()
        size = self._mujoco.mj_stateSize(self._model, self._mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
        if size != 1 + self._model.nq + self._model.nv:
            raise ConfigError(
                f"a simulator whose state has {size} numbers: must be time, {self._model.nq} positions and "
                f"{self._model.nv} velocities, which is all that a task's state says"
            )
        self.action_dim = len(bounds.low)
        self._bounds, self._largest_velocity = bounds, largest_velocity

    def rollout(
        self,
        history: History,
        actions: Float[Tensor, "envs samples horizon action"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "envs samples horizon state"]:
        """As :meth:`forerun.core.protocols.Dynamics.rollout`; draws nothing."""
        num_envs, num_samples, horizon, _ = actions.shape
        present = history.present.repeat_interleave(num_samples, dim=0).double().numpy()
        # Time and the first position are 0: neither changes what follows.
        first = np.concatenate([np.zeros((len(present), 2)), present], axis=1)
        control = self._bounds.clamp(actions).flatten(0, 1).double().numpy()
        states, _ = self._rollout.rollout(self._model, self._data, first, np.repeat(control, self._frame_skip, axis=1))
        after = torch.from_numpy(states[:, self._frame_skip - 1 :: self._frame_skip, 2:]).float()
        if self._largest_velocity is not None:
            speeds = after[..., self._model.nq - 1 :]
            speeds.clamp_(-self._largest_velocity, self._largest_velocity)
        return after.reshape(num_envs, num_samples, horizon, -1)
