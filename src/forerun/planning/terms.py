"""Objectives that have a name, for expressions such as ``speed(2.0) + 0.1 * energy() - keep_out(...)``.

All read states and actions in the units of the task. Wishes (:func:`speed`, :func:`near`, :func:`energy`) are at most
0, so they are added; :func:`keep_out` and :func:`keep_in` give how far a plan trespasses: subtract them, or make them
hard constraints.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import History
from forerun.core.errors import ConfigError
from forerun.envs.control_env import RewardFunction
from forerun.planning.objective import ComposableObjective, PlanReward, RunningReward, StepFunction

Box = Mapping[int, tuple[float, float]]
"""Index of a number of the state: its least and greatest value."""


class TransitionReward(ComposableObjective):
    """The discounted sum of a task's own reward, which may read the state before an action and the one after it.

    Args:
        reward: What a step pays.
        discount: Factor from a step to the next.
    """

    def __init__(self, reward: RewardFunction, *, discount: float = 1.0) -> None:
        self._reward, self._discount = reward, discount

    def score(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon state"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """As :meth:`forerun.core.protocols.Objective.score`."""
        first = history.present[:, None, None].expand(-1, states.shape[1], -1, -1)
        before = torch.cat([first, states[:, :, :-1]], dim=2)
        rewards = self._reward(before, actions, states)
        return (rewards * self._discount ** torch.arange(states.shape[2])).sum(dim=-1)


def near(targets: Mapping[int, float]) -> RunningReward:
    """Wish that numbers of the state have values: minus the absolute error, summed over numbers and steps.

    Args:
        targets: Index: value.
    """
    indices, values = list(targets), torch.tensor(list(targets.values()))

    def near_reward(states: Tensor, actions: Tensor) -> Tensor:
        return -(states[..., indices] - values).abs().sum(dim=-1)

    return RunningReward(near_reward)


def speed(target: float, *, index: int) -> RunningReward:
    """Wish that one number of the state, a speed, has a value; see :func:`near`."""
    return near({index: target})


def energy() -> RunningReward:
    """Wish for little effort: minus the squared actions, summed over numbers and steps."""

    def energy_reward(states: Tensor, actions: Tensor) -> Tensor:
        return -(actions**2).sum(dim=-1)

    return RunningReward(energy_reward)


def any_of(wishes: Sequence[ComposableObjective]) -> PlanReward:
    """Wish for any of several: each plan counts by the wish that it fulfils best.

    Args:
        wishes: At least one, of one scale.

    Raises:
        ConfigError: There is none, or one is no composable objective.
    """
    if not wishes or not all(isinstance(wish, ComposableObjective) for wish in wishes):
        raise ConfigError("any_of(...): name one or more terms, such as any_of(near(x=1.0), near(x=2.0))")

    def best_of(history: History, states: Tensor, actions: Tensor) -> Tensor:
        return torch.stack([wish.score(history, states, actions) for wish in wishes]).amax(dim=0)

    return PlanReward(best_of)


def keep_out(box: Box) -> RunningReward:
    """Give how deep a plan is inside a box, summed over the steps; see :func:`depth_inside`."""
    return RunningReward(depth_inside(box))


def keep_in(box: Box) -> RunningReward:
    """Give how far a plan is outside a box, summed over the steps; see :func:`distance_outside`."""
    return RunningReward(distance_outside(box))


def depth_inside(box: Box) -> StepFunction:
    """Return a function of states that is the distance to the nearest face inside a box, and 0 outside.

    Args:
        box: Numbers that are not named are free.
    """
    indices, low, high = _faces(box)

    def depth(states: Tensor, actions: Tensor) -> Tensor:
        inside = states[..., indices]
        return torch.minimum(inside - low, high - inside).amin(dim=-1).clamp(min=0.0)

    return depth


def distance_outside(box: Box) -> StepFunction:
    """Return a function of states that is the distance to a box outside of it (the greatest of its numbers), else 0.

    Args:
        box: Numbers that are not named are free.
    """
    indices, low, high = _faces(box)

    def distance(states: Tensor, actions: Tensor) -> Tensor:
        outside = states[..., indices]
        return torch.maximum(low - outside, outside - high).amax(dim=-1).clamp(min=0.0)

    return distance


def _faces(box: Box) -> tuple[list[int], Tensor, Tensor]:
    return list(box), torch.tensor([low for low, _ in box.values()]), torch.tensor([high for _, high in box.values()])
