"""Control tasks as batches of environments that step together, so that one planner serves them all at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from forerun.core.control import ActionBounds
from forerun.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """What one step of a batch gave.

    Attributes:
        states: The states after it.
        rewards: Of this step.
        terminated: Where the task itself has ended, so that nothing follows.
        truncated: Where only the time was up; the state has a future that the episode does not show.
    """

    states: Float[Tensor, "envs state"]
    rewards: Float[Tensor, " envs"]
    terminated: Bool[Tensor, " envs"]
    truncated: Bool[Tensor, " envs"]


class BatchEnv(Protocol):
    """Several environments of one task, each with a stream of chance of its own.

    Attributes:
        num_envs: How many.
        bounds: The box of actions; what lies outside is clamped, as an actuator would.
    """

    num_envs: int
    bounds: ActionBounds

    def reset(self, seeds: Sequence[int]) -> Float[Tensor, "envs state"]:
        """Begin an episode in each; an environment's course is a function of its seed and its actions.

        Args:
            seeds: One for each environment.
        """
        ...

    def step(self, actions: Float[Tensor, "envs action"]) -> Transition:
        """Act in each. One that has ended stays where it is and gives no reward."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ActuatorFault:
    """A defect of some numbers of the action: what acts is ``clamp(gain * action + bias, -limit, limit)``.

    Attributes:
        indices: Which numbers of the action.
        gain: 1 is healthy, less is weak, below 0 has its poles swapped.
        bias: What acts where nothing is asked for, in units of the action.
        limit: Greatest absolute value of what acts, in units of the action; ``None``: that of the box.
    """

    indices: tuple[int, ...]
    gain: float = 1.0
    bias: float = 0.0
    limit: float | None = None

    def __post_init__(self) -> None:
        if not self.indices or min(self.indices) < 0 or (self.limit is not None and self.limit < 0):
            raise ConfigError(
                f"an actuator fault of indices {list(self.indices)} with the limit {self.limit}: must name numbers of "
                "the action from 0 on, and a limit of at least 0"
            )

    def acting(self, actions: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        """Return what acts where these actions are asked for."""
        acting = actions.clone()
        chosen = list(self.indices)
        acting[..., chosen] = self.gain * actions[..., chosen] + self.bias
        if self.limit is not None:
            acting[..., chosen] = acting[..., chosen].clamp(-self.limit, self.limit)
        return acting


class FaultyActuator:
    """A task with a damaged motor.

    The box of actions that planners see stays as it was; they have to learn from what happens. So does what a step
    pays, as a function of the states and of the action that was *asked for*: only the dynamics is another one.

    Args:
        env: The healthy task.
        fault: What is wrong.
        reward: What a step of the task pays.

    Raises:
        ConfigError: The fault names a number that the action does not have.
    """

    def __init__(self, env: BatchEnv, fault: ActuatorFault, *, reward: "RewardFunction") -> None:
        action_dim = len(env.bounds.low)
        if max(fault.indices) >= action_dim:
            raise ConfigError(f"an actuator fault of indices {list(fault.indices)}: must lie in [0, {action_dim})")
        self.num_envs, self.bounds = env.num_envs, env.bounds
        self._env, self._fault, self._reward = env, fault, reward
        self._states, self._has_ended = torch.empty(0), torch.empty(0, dtype=torch.bool)

    def reset(self, seeds: Sequence[int]) -> Float[Tensor, "envs state"]:
        """As :meth:`BatchEnv.reset`."""
        self._states, self._has_ended = self._env.reset(seeds), torch.zeros(self.num_envs, dtype=torch.bool)
        return self._states

    def step(self, actions: Float[Tensor, "envs action"]) -> Transition:
        """As :meth:`BatchEnv.step`."""
        asked = self.bounds.clamp(actions)
        acting = self._fault.acting(asked)
        before, made = self._states, self._env.step(acting)
        paid = self._reward(before, self.bounds.clamp(acting), made.states)
        more = self._reward(before, asked, made.states) - paid
        rewards = made.rewards + torch.where(self._has_ended, 0.0, more)
        self._states, self._has_ended = made.states, self._has_ended | made.terminated | made.truncated
        return Transition(states=made.states, rewards=rewards, terminated=made.terminated, truncated=made.truncated)


class ClosedFormEnv:
    """A task given by closed forms: where it starts, how it moves, what a step pays. It never terminates.

    Args:
        num_envs: How many.
        bounds: The box of actions.
        num_steps: Steps until an episode is truncated.
        start: Draws the first state with a generator.
        transition: (states [..., state], actions [..., action]) -> the states after.
        reward: (states before, actions, states after) -> [...].
        noise_std: Standard deviation of what chance adds to each number of the state after each step.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        bounds: ActionBounds,
        num_steps: int,
        start: "StartFunction",
        transition: "TransitionFunction",
        reward: "RewardFunction",
        noise_std: float = 0.0,
    ) -> None:
        self.num_envs, self.bounds = num_envs, bounds
        self._num_steps, self._start, self._transition, self._reward = num_steps, start, transition, reward
        self._noise_std = noise_std
        self._generators: list[torch.Generator] = []
        self._states = torch.empty(0)
        self._num_done = 0

    def reset(self, seeds: Sequence[int]) -> Float[Tensor, "envs state"]:
        """As :meth:`BatchEnv.reset`."""
        check_num_seeds(seeds, self.num_envs)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._states = torch.stack([self._start(generator) for generator in self._generators])
        self._num_done = 0
        return self._states

    def step(self, actions: Float[Tensor, "envs action"]) -> Transition:
        """As :meth:`BatchEnv.step`."""
        before, actions = self._states, self.bounds.clamp(actions)
        after = self._transition(before, actions)
        if self._noise_std > 0:
            shape = (after.shape[-1],)
            drawn = torch.stack([torch.randn(shape, generator=generator) for generator in self._generators])
            after = after + self._noise_std * drawn
        has_ended = self._num_done >= self._num_steps
        self._num_done += 1
        rewards = self._reward(before, actions, after)
        if not has_ended:
            self._states = after
        return Transition(
            states=self._states,
            rewards=torch.zeros_like(rewards) if has_ended else rewards,
            terminated=torch.zeros(self.num_envs, dtype=torch.bool),
            truncated=torch.full((self.num_envs,), self._num_done >= self._num_steps),
        )


class StartFunction(Protocol):
    """Draws a first state."""

    def __call__(self, generator: torch.Generator, /) -> Float[Tensor, " state"]:
        """Return the state."""
        ...


class TransitionFunction(Protocol):
    """One step of a known dynamics."""

    def __call__(
        self, states: Float[Tensor, "*batch state"], actions: Float[Tensor, "*batch action"], /
    ) -> Float[Tensor, "*batch state"]:
        """Return the states after the actions."""
        ...


class RewardFunction(Protocol):
    """What one step pays."""

    def __call__(
        self,
        before: Float[Tensor, "*batch state"],
        actions: Float[Tensor, "*batch action"],
        after: Float[Tensor, "*batch state"],
        /,
    ) -> Float[Tensor, "*batch"]:
        """Return the reward of each step."""
        ...


def check_num_seeds(seeds: Sequence[int], num_envs: int) -> None:
    """Refuse a list of seeds that is not one for each environment.

    Raises:
        ConfigError: It is not.
    """
    if len(seeds) != num_envs:
        raise ConfigError(f"{len(seeds)} seeds for {num_envs} environments: give one for each")
