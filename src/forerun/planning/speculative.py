"""Speculative planning: while an action runs, plan for the observations it is likely to lead to.

As speculative decoding prepares for the outcome of a verification, this prepares for the outcome of an action. The
world model plays the draft, the next observation the target: where one of the prepared observations is near enough, its
plan is there at once (a hit); elsewhere a new plan is made (a miss).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds, History, Plan
from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator
from forerun.core.protocols import Dynamics, Planner
from forerun.planning.controller import Controller, ControllerConfig

_PER_ENV: Final = ("actions", "states", "scores", "futures", "future_actions", "future_scores")
"""Fields of a plan that have a row for each environment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeculationConfig:
    """Options of :class:`SpeculativeController`.

    Attributes:
        num_guesses: Next observations prepared for, for each environment.
        tolerance: How far an observation may be from a guess: root mean square over the numbers of a state, in units of
            the typical change of each in one step.
    """

    num_guesses: int = 1
    tolerance: float = 0.25

    def __post_init__(self) -> None:
        if self.num_guesses < 1 or self.tolerance < 0:
            raise ConfigError(
                f"num_guesses={self.num_guesses}, tolerance={self.tolerance}: must be at least 1, and at least 0"
            )


@dataclass(kw_only=True, slots=True)
class SpeculationReport:
    """What speculation gave.

    Attributes:
        num_hits: Environment-steps whose plan was there.
        num_misses: Environment-steps that had to be planned for.
        hit_seconds: Time from observation to action of the steps at which every environment had a hit.
        miss_seconds: The same of the other steps.
        ahead_seconds: Time spent planning ahead, while actions ran.
    """

    num_hits: int = 0
    num_misses: int = 0
    hit_seconds: list[float] = field(default_factory=list)
    miss_seconds: list[float] = field(default_factory=list)
    ahead_seconds: list[float] = field(default_factory=list)

    @property
    def hit_rate(self) -> float:
        """Share of hits among the steps that could have one."""
        return self.num_hits / max(1, self.num_hits + self.num_misses)

    def add(self, other: "SpeculationReport") -> None:
        """Count another episode's report into this one."""
        self.num_hits += other.num_hits
        self.num_misses += other.num_misses
        self.hit_seconds += other.hit_seconds
        self.miss_seconds += other.miss_seconds
        self.ahead_seconds += other.ahead_seconds


class SpeculativeController(Controller):
    """A controller that plans ahead: call :meth:`anticipate` while an action runs.

    Args:
        config: As for :class:`~forerun.planning.controller.Controller`; every action is planned for.
        speculation: How many guesses, and how near one must be.
        planner: Makes plans.
        dynamics: Guesses observations; it is asked for one step only, which one-step models do best.
        bounds: The box of actions.
        unit: Typical change of each number of a state in one step.
        clock: Seconds; another one in tests.

    Raises:
        ConfigError: ``execute_horizon`` is not 1.
    """

    def __init__(
        self,
        config: ControllerConfig,
        *,
        speculation: SpeculationConfig,
        planner: Planner,
        dynamics: Dynamics,
        bounds: ActionBounds,
        unit: Float[Tensor, " state"],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if config.execute_horizon != 1:
            raise ConfigError(f"execute_horizon={config.execute_horizon}: must be 1 to speculate, a plan for each step")
        self._speculation, self._dynamics, self._unit = speculation, dynamics, unit
        super().__init__(config, planner=planner, bounds=bounds, clock=clock)

    def reset(self) -> None:
        """As :meth:`Controller.reset`."""
        super().reset()
        self.speculation_report = SpeculationReport()
        self._guesses: Float[Tensor, "envs guesses state"] | None = None
        self._ready: Plan | None = None

    def anticipate(self) -> None:
        """Plan for the likeliest next observations; nothing is done before the first action."""
        if self._history is None or self._last_actions is None or self.last_plan is None:
            return
        began = self._clock()
        count = self._speculation.num_guesses
        generator = keyed_generator(self.config.seed, "anticipate", self._env_step)
        running = self._last_actions[:, None, None].expand(-1, count, -1, -1)
        futures = self._dynamics.rollout(self._history, running, generator=generator)
        self._guesses = futures[:, :, 0]
        repeated = self._history.repeated(count)
        guessed = repeated.followed_by(
            self._last_actions.repeat_interleave(count, dim=0), self._guesses.flatten(0, 1), most=self.config.history
        )
        warm_start = self._warm_start()
        warm_start = None if warm_start is None else warm_start.repeat_interleave(count, dim=0)
        self._ready = self.planner.plan(guessed, generator=generator, warm_start=warm_start)
        self.speculation_report.ahead_seconds.append(self._clock() - began)

    def _made_plan(self, history: History, is_late: Callable[[], bool]) -> Plan:
        """Return the plans that are there, and make those that are not."""
        if self._ready is None or self._guesses is None:
            return super()._made_plan(history, is_late)
        began = self._clock()
        gaps = (self._guesses - history.present[:, None]) / self._unit
        distance, nearest = gaps.square().mean(dim=-1).sqrt().min(dim=1)
        is_hit = distance <= self._speculation.tolerance
        rows = torch.arange(history.num_envs) * self._guesses.shape[1] + nearest
        plan = _rows_of(self._ready, rows)
        self._ready = self._guesses = None
        report = self.speculation_report
        report.num_hits += int(is_hit.sum())
        report.num_misses += int((~is_hit).sum())
        if bool(is_hit.all()):
            report.hit_seconds.append(self._clock() - began)
            return plan
        missed = (~is_hit).nonzero()[:, 0]
        warm_start = self._warm_start()
        fresh = self.planner.plan(
            History(states=history.states[missed], actions=history.actions[missed]),
            generator=keyed_generator(self.config.seed, "plan", self._env_step),
            warm_start=None if warm_start is None else warm_start[missed],
            is_late=is_late,
        )
        plan = _with_rows(plan, missed, fresh)
        report.miss_seconds.append(self._clock() - began)
        return plan


def _rows_of(plan: Plan, rows: Tensor) -> Plan:
    return replace(plan, **{name: getattr(plan, name)[rows] for name in _PER_ENV})


def _with_rows(plan: Plan, rows: Tensor, fresh: Plan) -> Plan:
    """Return a plan in which some environments' rows are those of another one."""
    parts = {}
    # A search that the clock cut short may have scored fewer candidates in its last iteration.
    num_samples = min(plan.futures.shape[1], fresh.futures.shape[1])
    for name in _PER_ENV:
        whole, new = getattr(plan, name), getattr(fresh, name)
        if name.startswith("future"):
            whole, new = whole[:, :num_samples], new[:, :num_samples]
        parts[name] = whole.clone()
        parts[name][rows] = new
    return replace(fresh, **parts)
