"""Receding-horizon control: plan, act, look, plan again; with a clock, and never without an action."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds, History, Plan
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
        num_iterations: Iterations of the planner's full search, to count those that were cut short.
        clock: Seconds; another one in tests.
    """

    def __init__(
        self,
        config: ControllerConfig,
        *,
        planner: Planner,
        bounds: ActionBounds,
        num_iterations: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config, self._planner, self._bounds = config, planner, bounds
        self._num_iterations, self._clock = num_iterations, clock
        self.reset()

    def reset(self) -> None:
        """Forget everything, for a new episode."""
        self.report = ControlReport()
        self.last_plan: Plan | None = None
        self._history: History | None = None
        self._last_actions: Tensor | None = None
        self._env_step = self._num_executed = 0

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
        if self.last_plan is None or self._num_executed >= self.config.execute_horizon:
            actions = self._replanned(history)
        else:
            actions = self._rest_of_plan(history)
        self._history, self._last_actions = history, actions
        self._env_step += 1
        return actions

    def _replanned(self, history: History) -> Float[Tensor, "envs action"]:
        """Plan, and return the first actions, or what falls back for them."""
        before, num_before, deadline = self.last_plan, self._num_executed, self.config.deadline_s
        began = self._clock()
        try:
            plan = self._made_plan(history, lambda: deadline is not None and self._clock() - began > deadline)
        except ForerunError as error:
            if before is None:
                raise
            self.report.num_failed += 1
            self.report.last_error = str(error)
            return self._fallback(history)
        seconds = self._clock() - began
        self.report.plan_seconds.append(seconds)
        self.report.num_cut_short += plan.num_iterations < self._num_iterations
        is_feasible = plan.is_feasible
        self.report.num_infeasible += int((~is_feasible).sum())
        is_late = deadline is not None and seconds > deadline and plan.num_iterations >= self._num_iterations
        if is_late and before is not None:
            self.report.num_late += 1
            actions = self._fallback(history)
            # The plan was made for this step, which the fallback has filled: from the next one on it is of use.
            self.last_plan, self._num_executed = plan, 1
            return actions
        actions = self._bounds.clamp(plan.actions[:, 0])
        if not self.config.executes_infeasible and not bool(is_feasible.all()):
            self.last_plan, self._num_executed = before, num_before
            actions = torch.where(is_feasible[:, None], actions, self._fallback(history))
        self.last_plan, self._num_executed = plan, 1
        return actions

    def _made_plan(self, history: History, is_late: Callable[[], bool]) -> Plan:
        warm_start = None
        if self.config.has_warm_start and self.last_plan is not None:
            warm_start = self.last_plan.shifted(self._num_executed)
        generator = keyed_generator(self.config.seed, "plan", self._env_step)
        return self._planner.plan(history, generator=generator, warm_start=warm_start, is_late=is_late)

    def _fallback(self, history: History) -> Float[Tensor, "envs action"]:
        if self.config.fallback == "rest" or self.last_plan is None:
            self._num_executed += 1
            return self._bounds.middle.expand(history.num_envs, -1).clone()
        return self._rest_of_plan(history)

    def _rest_of_plan(self, history: History) -> Float[Tensor, "envs action"]:
        assert self.last_plan is not None
        actions = self.last_plan.shifted(self._num_executed)[:, 0]
        self._num_executed += 1
        return self._bounds.clamp(actions)

    def _seen(self, states: Float[Tensor, "envs state"]) -> History:
        if self._history is None or self._last_actions is None:
            return History.of_present(states, action_dim=len(self._bounds.low))
        seen = torch.cat([self._history.states, states[:, None]], dim=1)[:, -self.config.history :]
        done = torch.cat([self._history.actions, self._last_actions[:, None]], dim=1)
        return History(states=seen, actions=done[:, done.shape[1] - (seen.shape[1] - 1) :])
