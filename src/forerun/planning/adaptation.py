"""Adapt while acting: a watch says that predictions fail, what is seen from there on is kept, a new planner takes over.

What failing means is the watch's business (a drift detector over states, a surprise detector over embeddings), and what
adapting means is the caller's: tuning the dynamics of diffusion MPC, choosing among models, asking for help.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.errors import ConfigError
from forerun.core.protocols import Planner
from forerun.planning.controller import Controller


class Watch(Protocol):
    """Compares what is predicted with what is seen; :class:`~forerun.planning.drift_watch.DriftWatch` is one."""

    def observe(self, states: Float[Tensor, "envs state"]) -> None:
        """Take what is seen now."""
        ...

    def expect(self, states: Float[Tensor, "envs state"], actions: Float[Tensor, "envs action"]) -> None:
        """Predict what these actions lead to, to compare it with what is seen next."""
        ...

    @property
    def alarms(self) -> list[int | None]:
        """For each environment the step of its alarm; ``None``: there was none."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience:
    """What was seen and done since the alarm, in all environments side by side.

    Attributes:
        states: L + 1 of them: the last one is the present.
        actions: Taken in all but the last.
    """

    states: Float[Tensor, "envs steps_and_one state"]
    actions: Float[Tensor, "envs steps action"]


Adapt = Callable[[Experience], Planner]
"""From what was seen since the alarm to a planner that fits it; called once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptationConfig:
    """When to adapt.

    Attributes:
        num_alarms: Environments that must have raised an alarm.
        num_steps: Steps to record after that, to adapt to.
    """

    num_alarms: int = 1
    num_steps: int = 50

    def __post_init__(self) -> None:
        if self.num_alarms < 1 or self.num_steps < 1:
            raise ConfigError(f"num_alarms={self.num_alarms}, num_steps={self.num_steps}: must be at least 1")


class AdaptiveController:
    """Acts as its controller does, watched; adapts once, and goes on with the new planner.

    Args:
        config: When to adapt.
        controller: Acts; its ``planner`` is replaced.
        watch: Says when.
        adapt: Gives the new planner.
    """

    def __init__(self, config: AdaptationConfig, *, controller: Controller, watch: Watch, adapt: Adapt) -> None:
        self.config, self.controller, self.watch = config, controller, watch
        self._adapt = adapt
        self._states: list[Tensor] = []
        self._actions: list[Tensor] = []
        self._env_step = 0
        self.adapted_at: int | None = None
        """The step at which the new planner took over; ``None``: it has not."""

    def act(self, states: Float[Tensor, "envs state"], env_step: int | None = None, /) -> Float[Tensor, "envs action"]:
        """As :meth:`forerun.planning.controller.Controller.act`."""
        self.watch.observe(states)
        if self.adapted_at is None and self._is_alarmed:
            self._states.append(states)
            if len(self._actions) == self.config.num_steps:
                seen = Experience(states=torch.stack(self._states, dim=1), actions=torch.stack(self._actions, dim=1))
                self.controller.planner = self._adapt(seen)
                self.adapted_at = self._env_step
        actions = self.controller.act(states)
        self.watch.expect(states, actions)
        if self._states and self.adapted_at is None:
            self._actions.append(actions)
        self._env_step += 1
        return actions

    @property
    def _is_alarmed(self) -> bool:
        return sum(alarm is not None for alarm in self.watch.alarms) >= self.config.num_alarms
