"""What tasks with pictures have in common: worlds side by side, beginnings of episodes, and when a goal is reached.

Shape letters: N worlds, S numbers of a state, A numbers of an action, C numbers of a context.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float, UInt8

from forerun.core.errors import ConfigError

PolicyName = Literal["expert", "noisy", "random"]
POLICY_NAMES: Final[tuple[PolicyName, ...]] = ("expert", "noisy", "random")


class PixelWorld(Protocol):
    """Worlds of one task, stepped together; drawn only when asked."""

    @property
    def states(self) -> Float[np.ndarray, "N S"]:
        """What is known of each world: enough to make it anew, and to say whether a goal is reached."""
        ...

    def step(self, actions: Float[np.ndarray, "N A"]) -> None:
        """Act once in every world."""
        ...

    def render(self, resolution: int) -> UInt8[np.ndarray, "N resolution resolution 3"]:
        """Return what the camera sees of every world."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeStart:
    """How one episode begins, and who acts in it.

    Attributes:
        context: What holds for the whole episode, such as colours.
        state: Of the world at its first frame.
        act: From a state to the next action; keeps what it needs to remember.
    """

    context: Float[np.ndarray, " C"]
    state: Float[np.ndarray, " S"]
    act: Callable[[Float[np.ndarray, " S"]], Float[np.ndarray, " A"]]


class PixelTask(Protocol):
    """A task with pictures.

    Attributes:
        name: On the command line.
        action_dim: A: numbers of one raw action, each in [-1, 1].
        state_names: A name for each number of a state.
        context_names: A name for each number of a context.
        factors: What can differ between episodes.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 (in the class docstring)
    @property
    def action_dim(self) -> int: ...  # noqa: D102
    @property
    def state_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def context_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def factors(self) -> tuple[str, ...]: ...  # noqa: D102

    def begin(self, policy: PolicyName, factors: frozenset[str], rng: np.random.Generator) -> EpisodeStart:
        """Return how an episode begins.

        Args:
            policy: Who acts.
            factors: What is drawn for this episode instead of being as always.
            rng: Draws everything, now and while the policy acts.
        """
        ...

    def worlds(self, contexts: Float[np.ndarray, "N C"], states: Float[np.ndarray, "N S"]) -> PixelWorld:
        """Return worlds in given states.

        Raises:
            MissingDependencyError: The package that has this world, or one that draws it, is not installed.
        """
        ...

    def is_reached(self, states: Float[np.ndarray, "N S"], goals: Float[np.ndarray, "N S"]) -> Bool[np.ndarray, " N"]:
        """Return for each world whether its state counts as the goal."""
        ...

    def distances(self, states: Float[np.ndarray, "N S"], goals: Float[np.ndarray, "N S"]) -> Float[np.ndarray, " N"]:
        """Return how far each state is from its goal, in units of the task."""
        ...


def check_factors(task: PixelTask, factors: frozenset[str]) -> None:
    """Refuse factors that a task doesn't have.

    Raises:
        ConfigError: It doesn't have one of them.
    """
    if unknown := factors - set(task.factors):
        known = ", ".join(task.factors) or "none"
        raise ConfigError(f"factors of variation {sorted(unknown)}: known to task {task.name!r} are {known}")
