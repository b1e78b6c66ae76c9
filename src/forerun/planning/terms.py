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
from forerun.planning.objective import ComposableObjective, PlanReward, RunningReward, StateFunction, StepFunction

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
        return _paid(self._reward, self._discount, history, states, actions).sum(dim=-1)


class LeastReturn(ComposableObjective):
    r"""The least of several estimates of a plan's return: rewards up to a depth, and what the state there is worth.

    .. math:: \min_k \sum_{i < k} \gamma^i r_i + \gamma^k V(s_k)

    Along any plan these estimates fall, or stay, if the value is the optimal one and the future is what will happen: a
    state is worth the best that can follow it, and a plan is no better than that. One that rises on the way has been
    imagined too well, as a way through a wall is. The least of them is then the safest to believe.

    Args:
        reward: What a step pays.
        value: Of states.
        discount: Factor from a step to the next.
        depths: Steps after which the value is asked, from 1 on; those beyond the horizon count as its end.

    Raises:
        ConfigError: There is no depth, or one below 1.
    """

    def __init__(self, reward: RewardFunction, value: StateFunction, *, discount: float, depths: Sequence[int]) -> None:
        if min(depths, default=0) < 1:
            raise ConfigError(f"depths={list(depths)}: must name at least one number of steps, each at least 1")
        self._reward, self._value, self._discount, self._depths = reward, value, discount, sorted(set(depths))

    def score(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon state"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """As :meth:`forerun.core.protocols.Objective.score`."""
        depths = torch.tensor(self._depths).clamp(max=states.shape[2])
        paid = _paid(self._reward, self._discount, history, states, actions).cumsum(dim=-1)
        left = self._discount**depths * self._value(states[:, :, depths - 1])
        return (paid[..., depths - 1] + left).amin(dim=-1)


def _paid(
    reward: RewardFunction,
    discount: float,
    history: History,
    states: Float[Tensor, "envs samples horizon state"],
    actions: Float[Tensor, "envs samples horizon action"],
) -> Float[Tensor, "envs samples horizon"]:
    """Return the discounted reward of every step."""
    first = history.present[:, None, None].expand(-1, states.shape[1], -1, -1)
    before = torch.cat([first, states[:, :, :-1]], dim=2)
    return reward(before, actions, states) * discount ** torch.arange(states.shape[2])


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
