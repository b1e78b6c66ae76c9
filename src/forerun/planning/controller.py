"""Receding-horizon control: plan, act, look, plan again; with a clock, and never without an action."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds, History, Plan, moved_forward
from forerun.core.errors import ConfigError, ForerunError
from forerun.core.generator import keyed_generator
from forerun.core.protocols import Planner


@dataclass(frozen=True, kw_only=True, slots=True)
class ControllerConfig:
    """Options of :class:`Controller`.

    Attributes:
        execute_horizon: Actions of a plan that are executed before the next one is made.
        history: States that planners are shown.
        deadline_s: Seconds that a plan may take; a planner stops between iterations. ``None``: as long as it likes.
        has_warm_start: Whether the rest of the last plan is handed to the planner.
        fallback: What is done where there is no usable plan: ``continue`` with the rest of the last one, or ``rest`` in
            the middle of the box of actions.
        executes_infeasible: Whether a plan that breaks a hard constraint is executed all the same (it is the one that
            breaks it least) or replaced by the fallback.
        seed: Root of the planner's chance.
    """

    execute_horizon: int = 1
    history: int = 1
    deadline_s: float | None = None
    has_warm_start: bool = True
    fallback: Literal["continue", "rest"] = "continue"
    executes_infeasible: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.execute_horizon < 1 or self.history < 1:
            raise ConfigError(f"execute_horizon={self.execute_horizon}, history={self.history}: must be at least 1")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ConfigError(f"deadline_s={self.deadline_s}: must be above 0 seconds, or None for no deadline")


@dataclass(kw_only=True, slots=True)
class ControlReport:
    """What happened in an episode, beside the actions.

    Attributes:
        plan_seconds: How long each plan took.
        num_cut_short: Plans whose search the deadline ended before all its iterations.
        num_late: Plans that came after the deadline: the fallback acted, the plan served the next step.
        num_infeasible: Environment-plans that break a hard constraint.
        num_failed: Plans that an error prevented; the fallback acted.
        last_error: Its message.
    """

    plan_seconds: list[float] = field(default_factory=list)
    num_cut_short: int = 0
    num_late: int = 0
    num_infeasible: int = 0
    num_failed: int = 0
    last_error: str | None = None


class Controller:
    """Drives a batch of environments with a planner.

    Args:
        config: Options.
        planner: Makes plans.
        bounds: The box of actions.
        clock: Seconds; another one in tests.
    """

    def __init__(
        self,
        config: ControllerConfig,
        *,
        planner: Planner,
        bounds: ActionBounds,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config, self.planner, self._bounds = config, planner, bounds
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Forget everything, for a new episode."""
        self.report = ControlReport()
        self.last_plan: Plan | None = None
        self._history: History | None = None
        self._last_actions: Tensor | None = None
        self._queue: Float[Tensor, "envs horizon action"] | None = None
        self._env_step = self._num_since_plan = 0

    def act(self, states: Float[Tensor, "envs state"], env_step: int | None = None, /) -> Float[Tensor, "envs action"]:
        """Return the actions for what is seen now.

        Args:
            states: The present of each environment.
            env_step: Not needed; accepted so that a controller can stand where a policy does.

        Raises:
            ForerunError: The very first plan of an episode fails: the objective or the models don't fit the task. Later
                failures are counted in :attr:`report` and bridged by the fallback.
        """
        history = self._seen(states)
        if self._queue is None or self._num_since_plan >= self.config.execute_horizon:
            self._queue = self._replanned(history)
        actions = self._bounds.clamp(self._queue[:, 0])
        self._queue = moved_forward(self._queue, 1)
        self._num_since_plan += 1
        self._env_step += 1
        self._history, self._last_actions = history, actions
        return actions

    def _replanned(self, history: History) -> Float[Tensor, "envs horizon action"]:
        """Return the actions to come: those of a new plan, or what stands in for it."""
        before, deadline = self._queue, self.config.deadline_s
        began = self._clock()
        try:
            plan = self._made_plan(history, lambda: deadline is not None and self._clock() - began > deadline)
        except ForerunError as error:
            if before is None:
                raise
            self.report.num_failed += 1
            self.report.last_error = str(error)
            return self._stand_in(before)
        seconds = self._clock() - began
        self.report.plan_seconds.append(seconds)
        self.report.num_cut_short += not plan.is_complete
        self.report.num_infeasible += int((~plan.is_feasible).sum())
        self.last_plan, self._num_since_plan = plan, 0
        chosen = plan.actions
        if not self.config.executes_infeasible:
            rest = self._stand_in(chosen if before is None else before)
            chosen = torch.where(plan.is_feasible[:, None, None], chosen, rest)
        if deadline is not None and seconds > deadline and plan.is_complete and before is not None:
            self.report.num_late += 1
            # Its first action is late for this step; from the next step on the plan is of use.
            chosen = torch.cat([self._stand_in(before)[:, :1], chosen[:, 1:]], dim=1)
        return chosen

    def _made_plan(self, history: History, is_late: Callable[[], bool]) -> Plan:
        generator = keyed_generator(self.config.seed, "plan", self._env_step)
        return self.planner.plan(history, generator=generator, warm_start=self._warm_start(), is_late=is_late)

    def _warm_start(self) -> Float[Tensor, "envs horizon action"] | None:
        return self._queue if self.config.has_warm_start else None

    def _stand_in(self, queue: Float[Tensor, "envs horizon action"]) -> Float[Tensor, "envs horizon action"]:
        """Return what is done where there is no plan: what was planned before, or nothing much."""
        return queue if self.config.fallback == "continue" else self._bounds.middle.expand_as(queue)

    def _seen(self, states: Float[Tensor, "envs state"]) -> History:
        if self._history is None or self._last_actions is None:
            return History.of_present(states, action_dim=len(self._bounds.low))
        return self._history.followed_by(self._last_actions, states, most=self.config.history)
