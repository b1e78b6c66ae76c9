"""Gymnasium, both ways: its environments as a batch of ours, and ours as one of its."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds
from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError
from forerun.envs.control_env import BatchEnv, Transition, check_num_seeds


class GymnasiumBatch:
    """Several environments of Gymnasium, stepped in turn.

    Args:
        make: Makes one; its states and actions are vectors, its actions have bounds.
        num_envs: How many.

    Raises:
        ConfigError: States or actions are no vectors, or an action has no bounds.
    """

    def __init__(self, make: Callable[[], Any], num_envs: int) -> None:
        self.num_envs = num_envs
        self._envs = [make() for _ in range(num_envs)]
        space, seen = self._envs[0].action_space, self._envs[0].observation_space
        low, high = getattr(space, "low", None), getattr(space, "high", None)
        if low is None or high is None or low.ndim != 1 or len(getattr(seen, "shape", None) or ()) != 1:
            raise ConfigError(
                f"an environment with actions {space} and observations {seen}: both must be boxes of one dimension; "
                "wrap it (gymnasium.wrappers.FlattenObservation)"
            )
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ConfigError(f"actions {space}: must have finite bounds; wrap it (gymnasium.wrappers.RescaleAction)")
        self.bounds = ActionBounds(low=_tensor(low), high=_tensor(high))
        self._states = torch.empty(0)
        self._has_ended = np.ones(num_envs, dtype=bool)

    def reset(self, seeds: Sequence[int]) -> Float[Tensor, "envs state"]:
        """As :meth:`forerun.envs.control_env.BatchEnv.reset`."""
        check_num_seeds(seeds, self.num_envs)
        self._states = torch.stack([_tensor(env.reset(seed=s)[0]) for env, s in zip(self._envs, seeds, strict=True)])
        self._has_ended[:] = False
        return self._states

    def step(self, actions: Float[Tensor, "envs action"]) -> Transition:
        """As :meth:`forerun.envs.control_env.BatchEnv.step`."""
        chosen = self.bounds.clamp(actions).numpy()
        states = self._states.clone()
        rewards = torch.zeros(self.num_envs)
        ends = torch.zeros(2, self.num_envs, dtype=torch.bool)
        for index, env in enumerate(self._envs):
            if self._has_ended[index]:
                ends[1, index] = True
                continue
            state, reward, terminated, truncated, _ = env.step(chosen[index].astype(env.action_space.dtype))
            states[index], rewards[index] = _tensor(state), float(reward)
            ends[0, index], ends[1, index] = bool(terminated), bool(truncated)
            self._has_ended[index] = terminated or truncated
        self._states = states
        return Transition(states=states, rewards=rewards, terminated=ends[0], truncated=ends[1])

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()


def as_gymnasium(env: BatchEnv, *, state_dim: int) -> Any:
    """Return a batch of one as a ``gymnasium.Env``, for whatever expects Gymnasium's API.

    Args:
        env: Has one environment.
        state_dim: Numbers of a state.

    Raises:
        ConfigError: The batch has several environments.
        MissingDependencyError: Gymnasium is not installed.
    """
    if env.num_envs != 1:
        raise ConfigError(f"a batch of {env.num_envs} environments as one of Gymnasium: make a batch of 1")
    gymnasium = import_optional("gymnasium", extra="worlds", purpose="Gymnasium's interface")
    boxes = import_optional("gymnasium.spaces", extra="worlds", purpose="Gymnasium's interface")

    class View(gymnasium.Env):
        """The batch of one, with Gymnasium's signatures."""

        def __init__(self) -> None:
            low, high = env.bounds.low.numpy(), env.bounds.high.numpy()
            self.action_space = boxes.Box(low, high, dtype=np.float32)
            self.observation_space = boxes.Box(-np.inf, np.inf, (state_dim,), dtype=np.float32)

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[np.ndarray, dict[str, Any]]:
            super().reset(seed=seed)
            return env.reset([int(self.np_random.integers(2**31))])[0].numpy(), {}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            made = env.step(_tensor(action)[None])
            return (
                made.states[0].numpy(),
                float(made.rewards[0]),
                bool(made.terminated[0]),
                bool(made.truncated[0]),
                {},
            )

    return View()


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float32))
