"""Many runs: where they are made. An executor takes jobs and gives finished runs; here, processes of this machine."""

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
from forerun.core.errors import ConfigError, DivergenceError, ForerunError, TrainingError
from forerun.pretraining.jobs import Job, Report
from forerun.pretraining.run_store import Run

_POLL_S: Final = 0.25
_TELL_EVERY_S: Final = 0.5
_News = tuple[int, int, int, int, str]
"""Which grid and run, what is done of what, and a detail."""


class Executor(Protocol):
    """Makes runs, in some order and somewhere."""

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
        distinct = list(dict.fromkeys(jobs))
        progress = _GridProgress(distinct, report)
        if self.num_workers == 1 or len(distinct) == 1:
            outcomes = [_outcome(job, progress.teller(index)) for index, job in enumerate(distinct)]
        else:
            outcomes = self._make_apart(distinct, progress)
        failures = [outcome for outcome in outcomes if isinstance(outcome, ForerunError)]
        if failures:
            raise TrainingError(
                f"{len(failures)} of {len(distinct)} runs failed, the others are kept; the first: {failures[0]}"
            ) from failures[0]
        found = {
            job: outcome for job, outcome in zip(distinct, outcomes, strict=True) if not isinstance(outcome, Exception)
        }
        return [found[job] for job in jobs]

    def _make_apart(self, jobs: Sequence[Job], progress: "_GridProgress") -> "list[Run | ForerunError | None]":
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.num_workers, self._context, initializer=_start_worker, initargs=(self._news, self._cut)
            )
        self._num_grids += 1
        # The longest first, so that no core waits at the end for one that began late.
        order = sorted(range(len(jobs)), key=lambda index: -_weight(jobs[index]))
        try:
            futures = {index: self._pool.submit(_work, self._num_grids, index, jobs[index]) for index in order}
            pending: set[Future[Run | ForerunError | None]] = set(futures.values())
            while pending:
                pending = wait(pending, timeout=_POLL_S).not_done
                self._pass_on(progress)
            for index in range(len(jobs)):
                progress.teller(index)(1, 1, "")  # the last news may still be on its way
            return [futures[index].result() for index in range(len(jobs))]
        except BrokenProcessPool as error:
            self._pool = None
            raise TrainingError(
                "a worker process died, perhaps for want of memory; finished runs are kept: give the same command "
                "again, with fewer workers"
            ) from error

    def _pass_on(self, progress: "_GridProgress") -> None:
        while True:
            try:
                grid, index, done, total, detail = self._news.get_nowait()
            except queue.Empty:
                return
            if grid == self._num_grids:  # news of the grid before may arrive after its runs have ended
                progress.teller(index)(done, total, detail)


def _outcome(job: Job, report: Report) -> Run | ForerunError | None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcome = job.make(report)
    except DivergenceError:
        outcome = None
    except ForerunError as error:
        return error
    finally:
        torch.set_num_threads(threads)
    report(1, 1, "")
    return outcome


def _weight(job: Job) -> float:
    """Return about how long a run takes, in tokens of a model without layers."""
    config = job.config
    shape = config.shape
    layer = 4 * shape.hidden_size**2 + 3 * shape.hidden_size * shape.intermediate_size
    members = 0 if job.teacher is None else len(job.teacher.members)
    tokens = config.num_epochs * (config.unique_tokens or 1)
    return tokens * (1 + shape.num_layers * layer / 50_000) * (1 + members / 3)


class _GridProgress:
    """Adds up the progress of many runs, each counted by the time that it is thought to take."""

    def __init__(self, jobs: Sequence[Job], report: Report) -> None:
        self._weights = [_weight(job) for job in jobs]
        self._shares, self._report = [0.0] * len(jobs), report

    def teller(self, index: int) -> Report:
        """Return the report of one run."""

        def tell(done: int, total: int, detail: str) -> None:
            if self._shares[index] >= 1:  # a run that trained has told its end itself
                return
            self._shares[index] = done / total
            num_done = sum(share >= 1 for share in self._shares)
            whole = sum(self._weights)
            reached = sum(weight * share for weight, share in zip(self._weights, self._shares, strict=True))
            self._report(round(1000 * reached / whole), 1000, f"{num_done} of {len(self._shares)} runs  {detail}")

        return tell


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


def _work(grid: int, index: int, job: Job) -> Run | ForerunError | None:
    told_at = 0.0

    def report(done: int, total: int, detail: str) -> None:
        nonlocal told_at
        if _Worker.cut.is_set():
            raise TrainingError("stopped; give the same command again, it goes on")
        if done == total or time.monotonic() - told_at > _TELL_EVERY_S:
            told_at = time.monotonic()
            _Worker.news.put((grid, index, done, total, detail))

    return _outcome(job, report)
