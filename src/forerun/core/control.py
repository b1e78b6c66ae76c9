"""What planners, world models and controllers hand to each other: histories, bounds of actions, plans.

Shapes, here and wherever control is computed: E environments planned for at once, N candidates for each, F steps of the
horizon, H states of the history, D numbers of a state, A numbers of an action. A state may be physical or latent: only
the dynamics and the objective need to agree on it.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from forerun.core.errors import ConfigError

INFEASIBLE: Final = -1e9
"""Scores at or below this break a hard constraint; no reward may be as low."""
UNUSABLE: Final = -1e30
"""The score of a candidate whose predicted states are not finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What a controller has seen of each environment, up to now.

    Attributes:
        states: The last H states, oldest first; the last one is the present.
        actions: The H - 1 actions between them.
    """

    states: Float[Tensor, "envs history state"]
    actions: Float[Tensor, "envs history_less_one action"]

    def __post_init__(self) -> None:
        if self.states.ndim != 3 or self.actions.ndim != 3 or self.states.shape[1] != self.actions.shape[1] + 1:
            raise ConfigError(
                f"a history of states {list(self.states.shape)} and actions {list(self.actions.shape)}: must be "
                "[envs, H, state] and [envs, H - 1, action]; for the present alone use History.of_present"
            )

    @classmethod
    def of_present(cls, states: Float[Tensor, "envs state"], *, action_dim: int) -> "History":
        """Return a history of one state for each environment.

        Args:
            states: The present.
            action_dim: Numbers of an action.
        """
        return cls(states=states[:, None], actions=states.new_zeros(len(states), 0, action_dim))

    @property
    def present(self) -> Float[Tensor, "envs state"]:
        """The last state of each environment."""
        return self.states[:, -1]

    @property
    def num_envs(self) -> int:
        """Environments planned for."""
        return len(self.states)

    def followed_by(
        self, actions: Float[Tensor, "envs action"], states: Float[Tensor, "envs state"], *, most: int
    ) -> "History":
        """Return the history one step later.

        Args:
            actions: Taken in the present.
            states: What was seen then.
            most: States to keep at most.
        """
        seen = torch.cat([self.states, states[:, None]], dim=1)[:, -most:]
        done = torch.cat([self.actions, actions[:, None]], dim=1)
        return History(states=seen, actions=done[:, done.shape[1] - (seen.shape[1] - 1) :])

    def repeated(self, count: int) -> "History":
        """Return each environment's history several times in a row, as environments of their own."""
        return History(
            states=self.states.repeat_interleave(count, dim=0), actions=self.actions.repeat_interleave(count, dim=0)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionBounds:
    """The box that actions lie in.

    Attributes:
        low: Least value of each number of an action.
        high: Greatest value.
    """

    low: Float[Tensor, " action"]
    high: Float[Tensor, " action"]

    def __post_init__(self) -> None:
        if self.low.shape != self.high.shape or self.low.ndim != 1 or not bool((self.low < self.high).all()):
            low, high = self.low.numpy(force=True), self.high.numpy(force=True)
            raise ConfigError(
                f"action bounds low={low}, high={high}: must be two vectors of one length, low below high everywhere"
            )

    @classmethod
    def symmetric(cls, action_dim: int, limit: float = 1.0) -> "ActionBounds":
        """Return the box [-limit, limit] in every dimension.

        Args:
            action_dim: Numbers of an action.
            limit: Greatest absolute value.
        """
        return cls(low=torch.full((action_dim,), -limit), high=torch.full((action_dim,), limit))

    @property
    def middle(self) -> Float[Tensor, " action"]:
        """The centre of the box."""
        return 0.5 * (self.low + self.high)

    def clamp(self, actions: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        """Return the nearest actions inside the box."""
        return torch.minimum(torch.maximum(actions, self.low), self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a planner decided for each environment.

    Attributes:
        actions: The chosen actions.
        states: The states that the dynamics predicts after each of them.
        scores: What the objective thinks of them, higher is better; see :attr:`is_feasible`.
        futures: Predicted states of every candidate of the last iteration, to draw or to speculate with.
        future_actions: Their actions.
        future_scores: Their scores.
        num_iterations: Iterations that were done.
        is_complete: Whether these are all that were configured; not where the time was up before.
        num_candidates: Candidates scored for each environment, over all iterations.
    """

    actions: Float[Tensor, "envs horizon action"]
    states: Float[Tensor, "envs horizon state"]
    scores: Float[Tensor, " envs"]
    futures: Float[Tensor, "envs samples horizon state"]
    future_actions: Float[Tensor, "envs samples horizon action"]
    future_scores: Float[Tensor, "envs samples"]
    num_iterations: int
    is_complete: bool
    num_candidates: int

    @property
    def is_feasible(self) -> Bool[Tensor, " envs"]:
        """For each environment, whether the chosen plan breaks no hard constraint and its prediction is finite."""
        return self.scores > INFEASIBLE

    def shifted(self, num_executed: int) -> Float[Tensor, "envs horizon action"]:
        """Return the actions that are left, as a warm start; see :func:`moved_forward`."""
        return moved_forward(self.actions, num_executed)


def moved_forward(
    actions: Float[Tensor, "envs horizon action"], num_executed: int
) -> Float[Tensor, "envs horizon action"]:
    """Return sequences without their first actions, the last one repeated so that the length stays.

    Args:
        actions: The sequences.
        num_executed: Actions to leave out, at least 0.
    """
    left = actions[:, num_executed:]
    num_missing = actions.shape[1] - left.shape[1]
    return torch.cat([left, actions[:, -1:].expand(-1, num_missing, -1)], dim=1)
