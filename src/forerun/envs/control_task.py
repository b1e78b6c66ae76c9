"""What a control task is: names, sizes, how it is made, how data comes about, what is known of its optimum."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds
from forerun.envs.control_env import ActuatorFault, BatchEnv, RewardFunction, TransitionFunction


class Policy(Protocol):
    """Acts in a batch of environments."""

    def __call__(self, states: Float[Tensor, "envs state"], env_step: int, /) -> Float[Tensor, "envs action"]:
        """Return the actions of a step; a policy with noise may draw from a generator of its own.

        Args:
            states: The present.
            env_step: Steps already done in the episode.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlTask:
    """A task to act in.

    Attributes:
        name: What the command line calls it.
        summary: A few words.
        state_names: A name for each number of a state.
        action_names: A name for each number of an action.
        bounds: The box of actions.
        num_steps: Steps of an episode.
        discount: That the values of plans are learned with.
        horizon: Steps that models and planners look ahead.
        num_episodes: Episodes of data to learn from, by default.
        make_env: Gives a batch of environments.
        behaviour: Gives the policy that data is collected with, for a number of environments; every environment's
            policy differs, so that the data is a mixture.
        reward: What a step pays, for predicted states too.
        transition: The task's own equations, where they are known.
        best_policy: The known optimum, where there is one.
        defect: The damage that ``adapt`` is shown on.
    """

    name: str
    summary: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    bounds: ActionBounds
    num_steps: int
    discount: float
    horizon: int
    num_episodes: int
    make_env: Callable[[int], BatchEnv]
    behaviour: Callable[[int, torch.Generator], Policy]
    reward: RewardFunction
    transition: TransitionFunction | None = None
    best_policy: Policy | None = None
    defect: ActuatorFault | None = None

    @property
    def action_dim(self) -> int:
        """Numbers of an action."""
        return len(self.action_names)


class SmoothNoise:
    """Noise that remembers: each step keeps a share of the last one; its standard deviation is constant in time.

    Args:
        shape: Of a step's noise.
        std: Standard deviation, one for all or for each number.
        memory: Share that a step keeps, in [0, 1).
        generator: Of every number drawn.
    """

    def __init__(
        self, shape: tuple[int, ...], *, std: float | Tensor, memory: float, generator: torch.Generator
    ) -> None:
        self._std, self._memory, self._generator = std, memory, generator
        self._noise = torch.randn(shape, generator=generator)

    def next(self) -> Tensor:
        """Return the noise of the next step."""
        fresh = torch.randn(self._noise.shape, generator=self._generator)
        self._noise = self._memory * self._noise + (1 - self._memory**2) ** 0.5 * fresh
        return self._std * self._noise
