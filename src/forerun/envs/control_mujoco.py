"""What tasks of MuJoCo share: environments made without noise, the simulator as a world model and as a batch."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds, History
from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError
from forerun.envs.control_env import RewardFunction, Transition, check_num_seeds
from forerun.envs.control_task import StateTest


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
        is_coarse: Whether to step by Euler's method where the task does it by Runge and Kutta's: a quarter of the time,
            for searches, not for evaluations.

    Raises:
        ConfigError: The simulator's state has more than time, positions and velocities.
        MissingDependencyError: Gymnasium or MuJoCo is not installed.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        *,
        bounds: ActionBounds,
        largest_velocity: float | None = None,
        is_coarse: bool = False,
    ) -> None:
        self._mujoco = import_optional("mujoco", extra="worlds", purpose="the simulator as a world model")
        self._rollout = import_optional("mujoco.rollout", extra="worlds", purpose="the simulator as a world model")
        env = make().unwrapped
        self._model, self._frame_skip = env.model, int(env.frame_skip)
        if is_coarse:
            self._model.opt.integrator = self._mujoco.mjtIntegrator.mjINT_EULER.value
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
        num_envs, num_samples = actions.shape[:2]
        present = history.present.repeat_interleave(num_samples, dim=0)
        after = self.shown(self.simulated(present, actions.flatten(0, 1)))
        return after.unflatten(0, (num_envs, num_samples))

    def simulated(
        self, present: Float[Tensor, "rows state"], actions: Float[Tensor, "rows horizon action"]
    ) -> Float[Tensor, "rows horizon state"]:
        """Return the states that follow, their velocities whole.

        Args:
            present: Likewise.
            actions: Clamped to their box.
        """
        # Time and the first position are 0: neither changes what follows.
        first = np.concatenate([np.zeros((len(present), 2)), present.double().numpy()], axis=1)
        control = self._bounds.clamp(actions).double().numpy()
        states, _ = self._rollout.rollout(self._model, self._data, first, np.repeat(control, self._frame_skip, axis=1))
        return torch.from_numpy(states[:, self._frame_skip - 1 :: self._frame_skip, 2:]).float()

    def shown(self, states: Float[Tensor, "*batch state"]) -> Float[Tensor, "*batch state"]:
        """Return states as the task shows them, their velocities cut."""
        if self._largest_velocity is None:
            return states
        split = self._model.nq - 1
        speeds = states[..., split:].clamp(-self._largest_velocity, self._largest_velocity)
        return torch.cat([states[..., :split], speeds], dim=-1)


class MujocoBatch:
    """A task's environments, stepped together by its simulator: faster than those of Gymnasium in turn, for searches.

    Rewards are those of a function of the states, and each step begins with what a state holds: see
    :class:`MujocoDynamics`.

    Args:
        make: Makes the task's environment, which first states are taken from.
        num_envs: How many.
        dynamics: The task's simulator.
        bounds: The box of actions.
        reward: What a step pays.
        num_steps: Steps until an episode is truncated.
        goes_on: Whether a state is one that an episode goes on from; ``None``: every one.

    Raises:
        MissingDependencyError: Gymnasium or MuJoCo is not installed.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        num_envs: int,
        *,
        dynamics: MujocoDynamics,
        bounds: ActionBounds,
        reward: RewardFunction,
        num_steps: int,
        goes_on: StateTest | None = None,
    ) -> None:
        self.num_envs, self.bounds = num_envs, bounds
        self._env, self._dynamics, self._reward = make(), dynamics, reward
        self._num_steps, self._goes_on = num_steps, goes_on
        self._states, self._has_ended, self._num_done = torch.empty(0), torch.empty(0, dtype=torch.bool), 0

    def reset(self, seeds: Sequence[int]) -> Float[Tensor, "envs state"]:
        """As :meth:`forerun.envs.control_env.BatchEnv.reset`."""
        check_num_seeds(seeds, self.num_envs)
        self._states = torch.from_numpy(np.stack([self._env.reset(seed=seed)[0] for seed in seeds])).float()
        self._has_ended, self._num_done = torch.zeros(self.num_envs, dtype=torch.bool), 0
        return self._states

    def step(self, actions: Float[Tensor, "envs action"]) -> Transition:
        """As :meth:`forerun.envs.control_env.BatchEnv.step`."""
        is_running, chosen = ~self._has_ended, self.bounds.clamp(actions)
        self._num_done += 1
        before, after = self._dynamics.shown(self._states), self._states.clone()
        terminated = torch.zeros(self.num_envs, dtype=torch.bool)
        if bool(is_running.any()):
            after[is_running] = self._dynamics.simulated(self._states[is_running], chosen[is_running][:, None])[:, 0]
        self._states, after = after, self._dynamics.shown(after)
        rewards = torch.where(is_running, self._reward(before, chosen, after), 0.0)
        if self._goes_on is not None:
            terminated = is_running & ~self._goes_on(after)
        self._has_ended = self._has_ended | terminated | torch.tensor(self._num_done >= self._num_steps)
        return Transition(states=after, rewards=rewards, terminated=terminated, truncated=self._has_ended & ~terminated)
