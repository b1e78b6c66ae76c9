"""Planning in a thread of its own, while actions run: nobody waits for a plan but at the first step."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds, History, Plan, moved_forward
from forerun.core.errors import ConfigError, ForerunError
from forerun.core.generator import keyed_generator
from forerun.core.protocols import Dynamics, Planner
from forerun.planning.controller import Controller, ControllerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """A situation to plan for, and the step at which the plan's first action would act."""

    history: History
    warm_start: Float[Tensor, "envs horizon action"] | None
    first_step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Finished:
    """What came of a job."""

    plan: Plan
    first_step: int
    seconds: float


class AsynchronousController(Controller):
    """A controller whose :meth:`act` gives the newest plan there is, and hands the present to the planner's thread.

    With a dynamics it plans for the observation that the running action is likely to lead to, so that a plan that is
    made within one step is in time. A plan that took longer is entered where the time has come to. At a step for which
    there is no new plan the rest of the last one acts (``report.num_late``), or nothing much, by ``config.fallback``.

    Call :meth:`close` at the end, or use it as a context.

    Args:
        config: As for :class:`~forerun.planning.controller.Controller`; a new plan is looked for at every step.
        planner: Makes plans, in the thread.
        bounds: The box of actions.
        dynamics: Predicts the next observation; ``None``: plans are for the present, and at least a step old.
        clock: Seconds; another one in tests.

    Raises:
        ConfigError: ``execute_horizon`` is not 1, or there is a deadline: the step is the deadline.
    """

    def __init__(
        self,
        config: ControllerConfig,
        *,
        planner: Planner,
        bounds: ActionBounds,
        dynamics: Dynamics | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if config.execute_horizon != 1 or config.deadline_s is not None:
            raise ConfigError(
                f"execute_horizon={config.execute_horizon}, deadline_s={config.deadline_s}: must be 1 and None to plan "
                "in a thread, which looks for a new plan at every step"
            )
        self._dynamics = dynamics
        self._condition = threading.Condition()
        self._wanted: _Job | None = None
        self._finished: Future[_Finished] | None = None
        self._is_busy = False
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="planner")
        super().__init__(config, planner=planner, bounds=bounds, clock=clock)

    def __enter__(self) -> "AsynchronousController":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def reset(self) -> None:
        """As :meth:`Controller.reset`; waits for the plan that is being made, and drops it."""
        self.settle()
        self._finished = None
        super().reset()

    def settle(self) -> None:
        """Wait until the thread has nothing to do."""
        with self._condition:
            self._condition.wait_for(lambda: self._wanted is None and not self._is_busy)

    def close(self) -> None:
        """End the thread, after the plan that it is making."""
        with self._condition:
            self._wanted = None
        self._pool.shutdown()

    def _replanned(self, history: History) -> Float[Tensor, "envs horizon action"]:
        """Return the actions to come, and have the next ones planned."""
        queue = self._queue
        chosen = super()._replanned(history) if queue is None else self._newest(queue)
        job = _Job(history=history, warm_start=None, first_step=self._env_step)
        if self._dynamics is not None:
            job = self._foreseen(history, self._bounds.clamp(chosen[:, 0]))
        if self.config.has_warm_start:
            job = replace(job, warm_start=moved_forward(chosen, job.first_step - self._env_step))
        with self._condition:
            # A situation that nobody has planned for yet gives way to a newer one.
            self._wanted = job
            if not self._is_busy:
                self._start_wanted()
        return chosen

    def _foreseen(self, history: History, actions: Float[Tensor, "envs action"]) -> _Job:
        """Return the situation that the running actions are likely to lead to."""
        assert self._dynamics is not None
        generator = keyed_generator(self.config.seed, "foresee", self._env_step)
        following = self._dynamics.rollout(history, actions[:, None, None], generator=generator)[:, 0, 0]
        seen = history.followed_by(actions, following, most=self.config.history)
        return _Job(history=seen, warm_start=None, first_step=self._env_step + 1)

    def _newest(self, queue: Float[Tensor, "envs horizon action"]) -> Float[Tensor, "envs horizon action"]:
        """Return the newest plan from the present step on, or what stands in for one."""
        with self._condition:
            finished, self._finished = self._finished, None
        if finished is None:
            self.report.num_late += 1
            return self._stand_in(queue)
        if isinstance(error := finished.exception(), ForerunError):
            self.report.num_failed += 1
            self.report.last_error = str(error)
            return self._stand_in(queue)
        made = finished.result()
        plan, self.last_plan = made.plan, made.plan
        self.report.plan_seconds.append(made.seconds)
        self.report.num_infeasible += int((~plan.is_feasible).sum())
        chosen = plan.shifted(self._env_step - made.first_step)
        if not self.config.executes_infeasible:
            chosen = torch.where(plan.is_feasible[:, None, None], chosen, self._stand_in(queue))
        return chosen

    def _start_wanted(self) -> None:
        """Hand the wanted situation to the thread, if there is one; the condition is held."""
        job, self._wanted = self._wanted, None
        self._is_busy = job is not None
        if job is not None:
            self._pool.submit(self._plan_for, job).add_done_callback(self._take)
        self._condition.notify_all()

    def _plan_for(self, job: _Job) -> _Finished:
        began = self._clock()
        generator = keyed_generator(self.config.seed, "plan", job.first_step)
        plan = self.planner.plan(job.history, generator=generator, warm_start=job.warm_start)
        return _Finished(plan=plan, first_step=job.first_step, seconds=self._clock() - began)

    def _take(self, finished: "Future[_Finished]") -> None:
        with self._condition:
            self._finished = finished
            self._start_wanted()
