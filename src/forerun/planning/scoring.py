"""Candidates, their predicted futures and their scores."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import UNUSABLE, History, Plan
from forerun.core.errors import ObjectiveError
from forerun.core.protocols import Dynamics, Objective


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Action sequences with what the dynamics and the objective say of them.

    Attributes:
        actions: The sequences.
        states: Predicted states after each action.
        scores: Higher is better.
    """

    actions: Float[Tensor, "envs samples horizon action"]
    states: Float[Tensor, "envs samples horizon state"]
    scores: Float[Tensor, "envs samples"]

    def best(self) -> "Candidates":
        """Return the best candidate of each environment, as candidates with N = 1; the first one where scores tie."""
        return self.take(self.scores.argmax(dim=1, keepdim=True))

    def elites(self, num_elites: int) -> "Candidates":
        """Return the best candidates of each environment, best first."""
        return self.take(self.scores.topk(min(num_elites, self.scores.shape[1]), dim=1).indices)

    def take(self, indices: Tensor) -> "Candidates":
        """Return some candidates of each environment.

        Args:
            indices: [envs, taken].
        """
        rows = indices[..., None, None]
        return Candidates(
            actions=torch.take_along_dim(self.actions, rows, dim=1),
            states=torch.take_along_dim(self.states, rows, dim=1),
            scores=torch.take_along_dim(self.scores, indices, dim=1),
        )

    def decided(
        self, *, best: "Candidates | None" = None, num_iterations: int, is_complete: bool, num_candidates: int
    ) -> Plan:
        """Return the plan that a planner decides for, with these candidates as the ones to show.

        Args:
            best: The decision, N = 1; ``None``: the best of these.
            num_iterations: See :class:`~forerun.core.control.Plan`, as for the others.
            is_complete: Whether the search came to its end.
            num_candidates: Scored in all.
        """
        best = self.best() if best is None else best
        return Plan(
            actions=best.actions[:, 0],
            states=best.states[:, 0],
            scores=best.scores[:, 0],
            futures=self.states,
            future_actions=self.actions,
            future_scores=self.scores,
            num_iterations=num_iterations,
            is_complete=is_complete,
            num_candidates=num_candidates,
        )

    @staticmethod
    def joined(first: "Candidates", second: "Candidates") -> "Candidates":
        """Return the candidates of both, the first ones before the second ones."""
        return Candidates(
            actions=torch.cat([first.actions, second.actions], dim=1),
            states=torch.cat([first.states, second.states], dim=1),
            scores=torch.cat([first.scores, second.scores], dim=1),
        )


class Scorer:
    """Predicts and scores action sequences, and checks what the objective returns.

    Args:
        dynamics: Predicts.
        objective: Scores.
    """

    def __init__(self, dynamics: Dynamics, objective: Objective) -> None:
        self._dynamics, self._objective = dynamics, objective

    @torch.no_grad()
    def score(
        self,
        history: History,
        actions: Float[Tensor, "envs samples horizon action"],
        *,
        generator: torch.Generator,
    ) -> Candidates:
        """Predict and score; mutates nothing but the generator.

        Args:
            history: What was seen.
            actions: The candidates.
            generator: Of a dynamics that draws.

        Returns:
            The candidates; see :func:`judged`, also for what it raises.
        """
        states = self._dynamics.rollout(history, actions, generator=generator)
        return judged(self._objective, history, states, actions)


def judged(
    objective: Objective,
    history: History,
    states: Float[Tensor, "envs samples horizon state"],
    actions: Float[Tensor, "envs samples horizon action"],
) -> Candidates:
    """Score predicted futures.

    Args:
        objective: Scores.
        history: What was seen.
        states: Predicted after each action.
        actions: The candidates.

    Returns:
        The candidates. Where predicted states are not finite the score is
        :data:`~forerun.core.control.UNUSABLE` whatever the objective says.

    Raises:
        ObjectiveError: The scores have another shape than [envs, samples], or one is not a number.
    """
    is_usable = states.isfinite().all(dim=-1).all(dim=-1)
    scores = checked_scores(objective.score(history, states, actions), states, actions, is_usable)
    return Candidates(actions=actions, states=states, scores=scores.masked_fill(~is_usable, UNUSABLE))


def checked_scores(
    scores: Tensor,
    states: Float[Tensor, "envs samples horizon state"],
    actions: Float[Tensor, "envs samples horizon action"],
    is_usable: Tensor,
) -> Float[Tensor, "envs samples"]:
    """Return the scores if they can be ranked.

    Args:
        scores: What an objective returned.
        states: Predicted states.
        actions: Candidates.
        is_usable: [envs, samples]: where the states are finite, so that the objective must be too.

    Raises:
        ObjectiveError: They can't; the message names the first candidate at fault.
    """
    if scores.shape != is_usable.shape:
        raise ObjectiveError(
            f"the objective returned shape {list(scores.shape)} for states {list(states.shape)} and actions "
            f"{list(actions.shape)}: must be [envs, samples] = {list(is_usable.shape)}; sum the rewards over the steps"
        )
    is_wrong = scores.isnan() & is_usable
    if bool(is_wrong.any()):
        env, sample = is_wrong.nonzero()[0].tolist()
        raise ObjectiveError(
            f"the objective is not a number for candidate {sample} of environment {env} ({int(is_wrong.sum())} in "
            f"all), whose first action is {_shown(actions[env, sample, 0])} and last state "
            f"{_shown(states[env, sample, -1])}: it must be finite for finite states; look for 0/0, a root or a "
            "logarithm of a negative number"
        )
    return scores


def _shown(values: Tensor) -> str:
    """Return a vector as short text."""
    numbers = [f"{value:.4g}" for value in values.tolist()]
    return f"[{', '.join(numbers[:8])}{', ...' if len(numbers) > 8 else ''}]"
