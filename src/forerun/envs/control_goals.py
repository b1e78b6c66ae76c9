"""Tasks whose state holds a goal: what being there pays, and a goal that moves in the middle of an episode."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from forerun.core.errors import ConfigError
from forerun.envs.control_env import BatchEnv, RewardFunction, Transition


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """Whether some numbers of a state are near others, and the reward of 1 for each step where they are.

    Attributes:
        moving: Indices of what shall arrive.
        goal: Indices of where, in the same order.
        radius: Greatest distance that counts as there.
    """

    moving: tuple[int, ...]
    goal: tuple[int, ...]
    radius: float

    def distance(self, states: Float[Tensor, "*batch state"]) -> Float[Tensor, "*batch"]:
        """Return how far it still is."""
        return (states[..., list(self.moving)] - states[..., list(self.goal)]).norm(dim=-1)

    def is_there(self, states: Float[Tensor, "*batch state"], /) -> Bool[Tensor, "*batch"]:
        """Return whether it has arrived."""
        return self.distance(states) <= self.radius

    def reward(
        self,
        before: Float[Tensor, "*batch state"],
        actions: Float[Tensor, "*batch action"],
        after: Float[Tensor, "*batch state"],
        /,
    ) -> Float[Tensor, "*batch"]:
        """Return 1 where the step ends there, else 0: the sooner it arrives, the more an episode returns."""
        return self.is_there(after).float()


class MovedGoal:
    """A task whose goals change places after some steps: every environment goes on with the next one's goal.

    States and rewards are those of the new goal from then on; what simulates the task does not know of it.

    Args:
        env: The task; a batch of at least two.
        goal: Indices of the goal in a state.
        reward: What a step pays.
        num_steps_before: Steps with the first goal.

    Raises:
        ConfigError: There is no other environment to take a goal from.
    """

    def __init__(self, env: BatchEnv, *, goal: Sequence[int], reward: RewardFunction, num_steps_before: int) -> None:
        if env.num_envs < 2:
            raise ConfigError(f"a batch of {env.num_envs} environments: goals that change places need at least 2")
        self.num_envs, self.bounds = env.num_envs, env.bounds
        self._env, self._goal, self._reward, self._before = env, list(goal), reward, num_steps_before
        self._states, self._new_goals, self._num_done = torch.empty(0), torch.empty(0), 0

    def reset(self, seeds: Sequence[int]) -> Float[Tensor, "envs state"]:
        """As :meth:`forerun.envs.control_env.BatchEnv.reset`."""
        self._states, self._num_done = self._env.reset(seeds), 0
        self._new_goals = self._states[:, self._goal].roll(-1, dims=0)
        return self._states

    def step(self, actions: Float[Tensor, "envs action"]) -> Transition:
        """As :meth:`forerun.envs.control_env.BatchEnv.step`."""
        before, made = self._states, self._env.step(actions)
        self._num_done += 1
        if self._num_done < self._before:
            self._states = made.states
            return made
        self._states = made.states.clone()
        self._states[:, self._goal] = self._new_goals
        return Transition(
            states=self._states,
            rewards=self._reward(before, self.bounds.clamp(actions), self._states),
            terminated=made.terminated,
            truncated=made.truncated,
        )
