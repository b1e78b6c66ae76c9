"""Objectives that compose: rewards per step, values of the end, sums with weights, hard constraints.

``speed + 0.1 * energy - keep_out`` is again an objective. Rewards are wanted, penalties are subtracted. A plain
function becomes an objective with :class:`RunningReward` or :class:`FinalReward`, at any time and without training:
objectives read predicted states, in the units of the task.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from forerun.core.control import INFEASIBLE, History
from forerun.core.errors import ConfigError, ForerunError, ObjectiveError
from forerun.core.protocols import Objective

StepFunction = Callable[[Tensor, Tensor], Tensor]
"""(states [envs, samples, horizon, state], actions [envs, samples, horizon, action]) -> [envs, samples, horizon]: the
state at an index is the one *after* the action at that index."""
StateFunction = Callable[[Tensor], Tensor]
"""states [..., state] -> [...]."""
PlanFunction = Callable[[History, Tensor, Tensor], Tensor]
"""(what was seen, states and actions as for a :data:`StepFunction`) -> [envs, samples]."""

_OF_USERS: Final = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError,
                    ValueError)  # fmt: skip
"""What a function that a user wrote may raise; a controller bridges it, as any error of an objective."""


class ComposableObjective(ABC):
    """An objective that can be added, subtracted and weighted."""

    @abstractmethod
    def score(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon state"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """As :meth:`forerun.core.protocols.Objective.score`."""

    def __add__(self, other: "ComposableObjective") -> "WeightedSum":
        return WeightedSum([(1.0, self), (1.0, other)])

    def __radd__(self, other: int) -> "ComposableObjective":
        """Let ``sum(objectives)`` begin, as it does, with 0."""
        return self if other == 0 else NotImplemented

    def __sub__(self, other: "ComposableObjective") -> "WeightedSum":
        return WeightedSum([(1.0, self), (-1.0, other)])

    def __mul__(self, weight: float) -> "WeightedSum":
        return WeightedSum([(weight, self)])

    def __rmul__(self, weight: float) -> "WeightedSum":
        return WeightedSum([(weight, self)])

    def __neg__(self) -> "WeightedSum":
        return WeightedSum([(-1.0, self)])

    def subject_to(self, *constraints: "Constraint") -> "ConstrainedObjective":
        """Return this objective under hard constraints: a plan that keeps them all beats every plan that does not."""
        return ConstrainedObjective(self, constraints)


class WeightedSum(ComposableObjective):
    """The sum of objectives with weights.

    Args:
        terms: (weight, objective); sums among them are opened.

    Raises:
        ConfigError: There is no term, a weight is not finite, or a term is no composable objective.
    """

    def __init__(self, terms: Sequence[tuple[float, ComposableObjective]]) -> None:
        flat: list[tuple[float, ComposableObjective]] = []
        for weight, term in terms:
            if not isinstance(term, ComposableObjective):
                raise ConfigError(
                    f"an objective can't be combined with {type(term).__name__}: wrap a function in RunningReward or "
                    "FinalReward, and put hard constraints on the whole sum, with (a + b).subject_to(...)"
                )
            if not abs(weight) < float("inf"):
                raise ConfigError(f"the weight {weight} of an objective: must be a finite number")
            inner = term.terms if isinstance(term, WeightedSum) else ((1.0, term),)
            flat += [(weight * factor, part) for factor, part in inner]
        if not flat:
            raise ConfigError("a sum of no objectives: name at least one")
        self.terms = tuple(flat)
        """(weight, objective), none of them a sum."""

    def score(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon state"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """As :meth:`forerun.core.protocols.Objective.score`."""
        scores = [weight * term.score(history, states, actions) for weight, term in self.terms]
        return torch.stack(scores).sum(dim=0)


class RunningReward(ComposableObjective):
    """The discounted sum over the horizon of a reward per step.

    Args:
        function: See :data:`StepFunction`; any Python function of tensors.
        discount: Factor from a step to the next, in (0, 1].
        is_mean: Whether to divide by the sum of the discounts, so that horizons compare.
    """

    def __init__(self, function: StepFunction, *, discount: float = 1.0, is_mean: bool = False) -> None:
        if not 0 < discount <= 1:
            raise ConfigError(f"discount={discount}: must lie in (0, 1]; 1 counts every step alike")
        self._function, self._discount, self._is_mean = function, discount, is_mean

    def score(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon state"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """As :meth:`forerun.core.protocols.Objective.score`.

        Raises:
            ObjectiveError: The function failed, or returned another shape than one number for each step.
        """
        rewards = _checked(
            self._function, (states, actions), states.shape[:3], "one number for each env, sample and step"
        )
        weights = self._discount ** torch.arange(states.shape[2], device=rewards.device)
        total = (rewards * weights).sum(dim=-1)
        return total / weights.sum() if self._is_mean else total


class FinalReward(ComposableObjective):
    """What the last predicted state is worth, such as a learned value or the distance to a goal.

    Args:
        function: See :data:`StateFunction`.
    """

    def __init__(self, function: StateFunction) -> None:
        self._function = function

    def score(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon state"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """As :meth:`forerun.core.protocols.Objective.score`.

        Raises:
            ObjectiveError: The function failed, or returned another shape than one number for each state.
        """
        return _checked(self._function, (states[:, :, -1],), states.shape[:2], "one number for each env and sample")


class PlanReward(ComposableObjective):
    """What a plan is worth as a whole, given what was seen before it.

    Args:
        function: See :data:`PlanFunction`.
    """

    def __init__(self, function: PlanFunction) -> None:
        self._function = function

    def score(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon state"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """As :meth:`forerun.core.protocols.Objective.score`; raises as :class:`FinalReward` does."""
        given = (history, states, actions)
        return _checked(self._function, given, states.shape[:2], "one number for each env and sample")


class GoalDistance(ComposableObjective):
    """The squared distance to a goal: a penalty, to be subtracted.

    Args:
        goal: One goal for all environments [1, state], or one for each [envs, state]; a vector is taken for all.
        when: ``last``: at the last step. ``every``: summed over the steps.
        weights: Factor of each number of the state, such as 0 for those that don't matter; ``None``: 1.
    """

    def __init__(
        self,
        goal: Float[Tensor, "goals state"] | Float[Tensor, " state"],
        *,
        when: str = "last",
        weights: Float[Tensor, " state"] | None = None,
    ) -> None:
        if when not in {"last", "every"}:
            raise ConfigError(f"when={when!r}: must be 'last' or 'every'")
        self._goal = goal if goal.ndim == 2 else goal[None]
        self._is_last, self._weights = when == "last", weights

    def score(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon state"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """As :meth:`forerun.core.protocols.Objective.score`.

        Raises:
            ObjectiveError: The goal is not of the states' size, or there is not one for each environment.
        """
        num_goals, dim = self._goal.shape
        if dim != states.shape[-1] or num_goals not in {1, len(states)}:
            raise ObjectiveError(
                f"a goal of shape [{num_goals}, {dim}]: must be [1, {states.shape[-1]}] or "
                f"[{len(states)}, {states.shape[-1]}], the environments planned for and the numbers of a state"
            )
        states = states[:, :, -1:] if self._is_last else states
        gaps = (states - self._goal[:, None, None]) ** 2
        gaps = gaps if self._weights is None else gaps * self._weights
        return gaps.sum(dim=(-1, -2))


class Constraint:
    """A hard limit on every step of a plan.

    Args:
        violation: As :data:`StepFunction`; above 0 where the limit is broken, the more the worse, 0 or less elsewhere.
        name: What messages call it.
    """

    def __init__(self, violation: StepFunction, *, name: str) -> None:
        self._violation, self.name = violation, name

    def violations(self, states: Float[np.ndarray, "episodes steps state"]) -> Float[np.ndarray, "episodes steps"]:
        """Return how far recorded states break a limit that reads states alone; 0 where they keep it."""
        seen = torch.from_numpy(states)[:, None]
        return self._violation(seen, seen.new_zeros((*seen.shape[:3], 0)))[:, 0].clamp(min=0.0).numpy()

    def total(
        self,
        states: Float[Tensor, "envs samples horizon state"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """Return the violation summed over the steps; 0 where the limit is kept.

        Raises:
            ObjectiveError: The function failed, or returned another shape, or something that is not a number.
        """
        given = (states, actions)
        steps = _checked(self._violation, given, states.shape[:3], "one number for each env, sample and step")
        if bool((steps.isnan() & states.isfinite().all(dim=-1)).any()):
            raise ObjectiveError(f"the constraint {self.name!r} is not a number for some candidate: it must be finite")
        return steps.clamp(min=0.0).sum(dim=-1)


class ConstrainedObjective:
    """An objective under hard constraints; candidates that break one are ranked below all others, by how much.

    It does not compose further: constraints belong on the whole sum.

    Args:
        objective: What is wanted.
        constraints: What must hold.
    """

    def __init__(self, objective: Objective, constraints: Sequence[Constraint]) -> None:
        self._objective, self.constraints = objective, tuple(constraints)

    def score(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon state"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """As :meth:`forerun.core.protocols.Objective.score`.

        Reference:
            Deb 2000, "An efficient constraint handling method for genetic algorithms": feasible before infeasible, then
            by violation alone.
        """
        scores = self._objective.score(history, states, actions)
        violation = torch.stack([constraint.total(states, actions) for constraint in self.constraints]).sum(dim=0)
        is_broken: Bool[Tensor, "envs samples"] = violation > 0
        return torch.where(is_broken, INFEASIBLE * (1.0 + violation), scores)

    def subject_to(self, *constraints: Constraint) -> "ConstrainedObjective":
        """Return the objective under more constraints."""
        return ConstrainedObjective(self._objective, (*self.constraints, *constraints))


def _checked(function: Callable[..., Tensor], given: tuple[object, ...], shape: torch.Size, meaning: str) -> Tensor:
    """Return what a user's function says, or an error that names the function."""
    name = getattr(function, "__name__", type(function).__name__)
    try:
        values: object = function(*given)
    except ForerunError:
        raise
    except _OF_USERS as error:
        raise ObjectiveError(
            f"{name} failed on predicted states with {type(error).__name__}: {' '.join(str(error).split())}; it gets "
            f"tensors and must return {list(shape)}, {meaning}"
        ) from error
    if not isinstance(values, Tensor):
        raise ObjectiveError(f"{name} returned {type(values).__name__}: must return a torch tensor, {meaning}")
    if values.shape != shape:
        raise ObjectiveError(f"{name} returned shape {list(values.shape)}: must be {list(shape)}, {meaning}")
    return values
