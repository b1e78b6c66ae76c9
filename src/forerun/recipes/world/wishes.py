"""What is wanted of a future, given the goals' embeddings: to look like the goal, to be near it by map, or words.

A wish becomes an objective when the goals of the tasks that are planned for are known.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from forerun.core.control import History
from forerun.core.protocols import Objective
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.planning.expression import ObjectiveLanguage
from forerun.planning.objective import ComposableObjective, GoalDistance, PlanReward
from forerun.recipes.world.heads import HeadName, fit_head
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
    model: LatentModel, seen: PixelEpisodes, goal: Literal["latent", "landmarks"], *, kappa: float = 0.0
) -> Wish:
    """Return the wish to reach a goal.

    Args:
        model: Embeds; of an ensemble each model has its own wish, and ``kappa`` is what disagreement costs.
        seen: Episodes that it learned from, for maps.
        goal: ``latent``: as :func:`picture_wish`. ``landmarks``: the way over a map.
        kappa: See :class:`~forerun.worldmodels.jepa.ensemble.EnsembleObjective`.
    """

    def alone(part: LatentModel) -> Wish:
        return picture_wish if goal == "latent" else LandmarkMap.of_episodes(part, seen).objective

    return _of_each(model, alone, kappa=kappa)


def worded_wish(
    model: LatentModel,
    seen: PixelEpisodes,
    text: str,
    *,
    constraints: Sequence[str] = (),
    goal: Literal["latent", "landmarks"] = "latent",
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
        reach = goal_wish(part, seen, goal)
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
