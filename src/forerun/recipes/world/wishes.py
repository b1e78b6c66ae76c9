"""What is wanted of a future, given the goals' embeddings: to look like the goal, to be near it by map, or in words.

A wish becomes an objective when the goals of the tasks that are planned for are known.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import History
from forerun.core.protocols import Objective
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.planning.expression import ObjectiveLanguage
from forerun.planning.objective import ComposableObjective, GoalDistance, PlanReward
from forerun.recipes.world.heads import Head, HeadName, fit_head
from forerun.recipes.world.planners import CostTime, GoalName
from forerun.worldmodels.jepa.ensemble import EnsembleModel, EnsembleObjective
from forerun.worldmodels.jepa.goals import ReadObjective
from forerun.worldmodels.jepa.landmarks import LandmarkMap
from forerun.worldmodels.latent_model import LatentModel

Wish = Callable[[Float[Tensor, "envs D"]], Objective]
"""From the embedding of each environment's goal to what is wanted there."""


def picture_wish(goals: Float[Tensor, "envs D"]) -> Objective:
    """Want the last predicted embedding to be that of the goal's picture: the published cost."""
    return -GoalDistance(goals)


def goal_wish(
    model: LatentModel,
    seen: PixelEpisodes,
    goal: GoalName,
    *,
    cost_at: CostTime = "last",
    head: HeadName = "network",
    kappa: float = 0.0,
    seed: int = 0,
) -> Wish:
    """Return the wish to reach a goal.

    Args:
        model: Embeds; of an ensemble each model has its own wish, and ``kappa`` is what disagreement costs.
        seen: Episodes that it learned from, for maps and heads.
        goal: As in :class:`~forerun.recipes.world.planners.PlanConfig`; with ``latent`` and ``last`` it is
            :func:`picture_wish`.
        cost_at: Likewise.
        head: Kind of head, for ``state``.
        kappa: See :class:`~forerun.worldmodels.jepa.ensemble.EnsembleObjective`.
        seed: Of the head.

    Raises:
        TrajectoryError: ``state`` is wanted of episodes of which nothing is known.
    """

    def alone(part: LatentModel) -> Wish:
        match goal:
            case "latent":
                return lambda goals: -GoalDistance(goals, when=cost_at)
            case "landmarks":
                return LandmarkMap.of_episodes(part, seen).objective
            case "state":
                return _state_wish(fit_head(part, seen, kind=head, seed=seed), cost_at)

    return _of_each(model, alone, kappa=kappa)


def _state_wish(head: Head, cost_at: CostTime) -> Wish:
    """Want what a head reads off predicted embeddings to be what it reads off the goal's, in standard deviations."""
    per_quantity = head.target_normalizer.scale.square().reciprocal()

    def wish(goals: Float[Tensor, "envs D"]) -> Objective:
        weights = torch.cat([per_quantity, torch.zeros(goals.shape[1])])
        return ReadObjective(-GoalDistance(torch.cat([head(goals), goals], dim=1), when=cost_at, weights=weights), head)

    return wish


def worded_wish(
    model: LatentModel,
    seen: PixelEpisodes,
    text: str,
    *,
    constraints: Sequence[str] = (),
    goal: GoalName = "latent",
    cost_at: CostTime = "last",
    head: HeadName = "network",
    kappa: float = 0.0,
    seed: int = 0,
) -> Wish:
    """Return the wish that a text describes, of quantities that a head reads off embeddings.

    Args:
        model: Embeds; of an ensemble each model has a head of its own.
        seen: Episodes that it learned from; they fit the heads, and their quantities are the names in the text.
        text: As :class:`~forerun.planning.expression.ObjectiveLanguage` reads it; ``goal()`` is the wish of
            :func:`goal_wish`.
        constraints: Hard limits beside it, ``keep_out(...)`` or ``keep_in(...)``.
        goal: What ``goal()`` means.
        cost_at: When ``goal()`` counts.
        head: Kind of head.
        kappa: As for :func:`goal_wish`.
        seed: Of the heads.

    Raises:
        ConfigError: The text can't be read, or names what is not known.
        TrajectoryError: Nothing is known of these episodes.
    """
    _composed(text, constraints, seen.state_names, PlanReward(lambda history, states, actions: states[:, :, -1, 0]))

    def alone(part: LatentModel) -> Wish:
        read = fit_head(part, seen, kind=head, seed=seed)
        reach = goal_wish(part, seen, goal, cost_at=cost_at, head=head, seed=seed)
        num_read = len(seen.state_names)

        def wish(goals: Float[Tensor, "envs D"]) -> Objective:
            inner = reach(goals)

            def reached(history: History, states: Tensor, actions: Tensor) -> Tensor:
                past = History(states=history.states[..., num_read:], actions=history.actions)
                return inner.score(past, states[..., num_read:], actions)

            return ReadObjective(_composed(text, constraints, seen.state_names, PlanReward(reached)), read)

        return wish

    return _of_each(model, alone, kappa=kappa)


def _of_each(model: LatentModel, alone: Callable[[LatentModel], Wish], *, kappa: float) -> Wish:
    """Return the wish of a model, or of an ensemble's models together."""
    if not isinstance(model, EnsembleModel):
        return alone(model)
    wishes, widths = [alone(part) for part in model.models], model.widths

    def together(goals: Float[Tensor, "envs D"]) -> Objective:
        parts = goals.split(widths, dim=-1)
        objectives = [wish(part) for wish, part in zip(wishes, parts, strict=True)]
        return EnsembleObjective(objectives, widths, kappa=kappa)

    return together


def _composed(text: str, constraints: Sequence[str], names: Sequence[str], goal: ComposableObjective) -> Objective:
    """Return the objective of states [quantities, embedding] that a text describes."""
    language = ObjectiveLanguage(names, {"goal": goal})
    objective = language.objective(text)
    limits = [language.constraint(limit) for limit in constraints]
    return objective.subject_to(*limits) if limits else objective
