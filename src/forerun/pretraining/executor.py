"""Many runs on the processes of this machine; and what any executor does."""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import Final, Protocol, Self

import torch

from forerun.core.env import available_cores
from forerun.core.errors import ConfigError, TrainingError
from forerun.pretraining.grid import Grid, Outcome, outcome_of
from forerun.pretraining.jobs import Job, Report
from forerun.pretraining.run_store import Run

_POLL_S: Final = 0.25
_TELL_EVERY_S: Final = 0.5
_News = tuple[int, int, int, int, str]
"""Which grid and run, what is done of what, and a detail."""


class Executor(Protocol):
    """Makes runs, in some order and somewhere; a context that ends what works for it."""

    num_workers: int
    """Runs that are made at a time."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def make(self, jobs: Sequence[Job], *, report: Report = ...) -> list[Run | None]:
        """Make every run and return them in the order of the jobs, ``None`` for one whose loss was no number.

        Args:
            jobs: What to make; the same job twice is made once.
            report: Told (tokens done, all tokens, detail).

        Raises:
            TrainingError: A run failed in another way; the others were finished first.
        """
        ...


class LocalExecutor:
    """Processes of this machine, one thread each; with one worker, this process.

    A finished run stays, whatever happens to the others. Ctrl-C ends the workers after their current step; a run
    that was cut goes on from its checkpoint when it is asked for again.

    Args:
        num_workers: Processes; ``None``: one for each core that this process may use.

    Raises:
        ConfigError: Fewer than one worker.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        self.num_workers = len(available_cores()) if num_workers is None else num_workers
        if self.num_workers < 1:
            raise ConfigError(f"num_workers={self.num_workers}: must be at least 1; one for each core is best")
        self._pool: ProcessPoolExecutor | None = None
        context = multiprocessing.get_context("spawn")
        self._context = context
        self._num_grids = 0
        self._news: Queue[_News] = context.Queue()
        self._cut: Event = context.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers: after their work, or after their current step if an error or Ctrl-C came."""
        if kind is not None:
            self._cut.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def make(self, jobs: Sequence[Job], *, report: Report = lambda done, total, detail: None) -> list[Run | None]:
        """Make every run, see :meth:`Executor.make`."""
        grid = Grid(jobs, report)
        if self.num_workers == 1 or len(grid.distinct) == 1:
            outcomes = [outcome_of(job, grid.teller(index)) for index, job in enumerate(grid.distinct)]
        else:
            outcomes = self._make_apart(grid)
        return grid.in_order(outcomes)

    def _make_apart(self, grid: Grid) -> list[Outcome]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.num_workers, self._context, initializer=_start_worker, initargs=(self._news, self._cut)
            )
        self._num_grids += 1
        jobs = grid.distinct
        try:
            futures = {
                index: self._pool.submit(_work, self._num_grids, index, jobs[index]) for index in grid.longest_first()
            }
            pending: set[Future[Outcome]] = set(futures.values())
            while pending:
                pending = wait(pending, timeout=_POLL_S).not_done
                self._pass_on(grid)
            for index in range(len(jobs)):
                grid.teller(index)(1, 1, "")  # the last news may still be on its way
            return [futures[index].result() for index in range(len(jobs))]
        except BrokenProcessPool as error:
            self._pool = None
            raise TrainingError(
                "a worker process died, perhaps for want of memory; finished runs are kept: give the same command "
                "again, with fewer workers"
            ) from error

    def _pass_on(self, grid: Grid) -> None:
        while True:
            try:
                number, index, done, total, detail = self._news.get_nowait()
            except queue.Empty:
                return
            if number == self._num_grids:  # news of the grid before may arrive after its runs have ended
                grid.teller(index)(done, total, detail)


class _Worker:
    """What a worker process knows of its parent; one for each process, set when it starts."""

    news: "Queue[_News]"
    cut: Event


def _start_worker(news: "Queue[_News]", cut: Event) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    torch.set_num_threads(1)
    _Worker.news, _Worker.cut = news, cut
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)  # nobody is left to work for; the run goes on from its checkpoint another time


def _work(grid: int, index: int, job: Job) -> Outcome:
    told_at = 0.0

    def report(done: int, total: int, detail: str) -> None:
        nonlocal told_at
        if _Worker.cut.is_set():
            raise TrainingError("stopped; give the same command again, it goes on")
        if done == total or time.monotonic() - told_at > _TELL_EVERY_S:
            told_at = time.monotonic()
            _Worker.news.put((grid, index, done, total, detail))

    return outcome_of(job, report)
