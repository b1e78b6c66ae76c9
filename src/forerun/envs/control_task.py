"""What a control task is: names, sizes, how it is made, how data comes about, what is known of its optimum."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from forerun.core.config import unknown_name
from forerun.core.control import ActionBounds
from forerun.core.errors import ConfigError
from forerun.core.protocols import Dynamics
from forerun.envs.control_env import ActuatorFault, BatchEnv, RewardFunction, TransitionFunction
from forerun.envs.control_goals import Arrival


class StateTest(Protocol):
    """Says of states whether something holds."""

    def __call__(self, states: Float[Tensor, "*batch state"], /) -> Bool[Tensor, "*batch"]:
        """Return the answer for each state."""
        ...


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
        simulator: Gives the task's simulator as a world model, where there is one and its equations are not known.
        best_policy: The known optimum, where there is one.
        has_succeeded: Whether a state is one that the task is about; an episode with one such state is a success.
            ``None``: there is no success, only return.
        goal: For tasks with a goal in their state: the indices of its numbers.
        stitched: For such tasks, where the way to a goal has to be put together from several episodes: what arrives
            where. The state value is then learned by stitching, with every place that was reached as a goal.
        value_depths: Steps after which plans are judged, by the least of what they are worth there; none: by what they
            are worth at the end alone. For worlds whose far futures are easily imagined too well.
        sharp: Indices of numbers of a state with whose place the world changes sharply, as at walls.
        most_wide: Share of plans that may begin from what the data does anywhere; less where what is likely depends
            much on the place, as at walls.
        blind_share: Share of SSR's plans that are uniform in the box of actions; where likely plans all lead into a
            wall, these leave it.
        most_envs: Environments that are made at once to record data; ``None``: one for each episode.
        defects: Damages that ``adapt`` is shown on, by name.
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
    simulator: Callable[[], Dynamics] | None = None
    best_policy: Policy | None = None
    has_succeeded: StateTest | None = None
    goal: tuple[int, ...] = ()
    stitched: Arrival | None = None
    value_depths: tuple[int, ...] = ()
    sharp: tuple[int, ...] = ()
    most_wide: float = 1.0
    blind_share: float = 0.0
    most_envs: int | None = None
    defects: Mapping[str, ActuatorFault] = field(default_factory=dict)

    @property
    def action_dim(self) -> int:
        """Numbers of an action."""
        return len(self.action_names)

    def defect(self, name: str = "") -> ActuatorFault:
        """Return a damage.

        Args:
            name: A key of :attr:`defects`; empty: the first one.

        Raises:
            ConfigError: There is none, or none of this name.
        """
        if not self.defects:
            raise ConfigError(f"{self.name}: no defect is known for it")
        if name and name not in self.defects:
            raise unknown_name(f"defect of {self.name}", name, self.defects)
        return self.defects[name or next(iter(self.defects))]


class SmoothNoise:
    """Noise that remembers: each step keeps a share of the last one; its standard deviation is constant in time.

    Args:
        shape: Of a step's noise.
        std: Standard deviation, one for all or for each number.
        memory: Share that a step keeps, in [0, 1); one for all or for each number.
        generator: Of every number drawn.
    """

    def __init__(
        self, shape: tuple[int, ...], *, std: float | Tensor, memory: float | Tensor, generator: torch.Generator
    ) -> None:
        self._std, self._memory, self._generator = std, memory, generator
        self._noise = torch.randn(shape, generator=generator)

    def next(self) -> Tensor:
        """Return the noise of the next step."""
        fresh = torch.randn(self._noise.shape, generator=self._generator)
        self._noise = self._memory * self._noise + (1 - self._memory**2) ** 0.5 * fresh
        return self._std * self._noise
