"""A grid of runs as an executor sees it: which are distinct, which are long, how far it is, and what came out."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch

from forerun.core.errors import DivergenceError, ForerunError, TrainingError
from forerun.pretraining.jobs import Job, Report
from forerun.pretraining.run_store import Run

Outcome: TypeAlias = Run | ForerunError | None
"""A run, or why it failed, or ``None`` where its loss was no number. As a value, for errors cross processes badly."""


def outcome_of(job: Job, report: Report) -> Outcome:
    """Make a run in this process on one thread, and return what came of it."""
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


class Grid:
    """Jobs that are made together.

    Args:
        jobs: What to make; the same job twice is made once.
        report: Told of all of them together, each counted by the time that it is thought to take.
    """

    def __init__(self, jobs: Sequence[Job], report: Report) -> None:
        self._jobs = list(jobs)
        self.distinct: list[Job] = list(dict.fromkeys(jobs))
        """Each job once."""
        self._weights = [_weight(job) for job in self.distinct]
        self._shares, self._report = [0.0] * len(self.distinct), report

    def longest_first(self) -> list[int]:
        """Return the places of the distinct jobs in the order to begin them: no core waits for one that began late."""
        return sorted(range(len(self.distinct)), key=lambda index: -self._weights[index])

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

    def in_order(self, outcomes: Iterable[Outcome]) -> list[Run | None]:
        """Return the runs of the jobs as they were given.

        Args:
            outcomes: Of the distinct jobs.

        Raises:
            TrainingError: One of them failed.
        """
        found: dict[Job, Run | None] = {}
        failures: list[ForerunError] = []
        for job, outcome in zip(self.distinct, outcomes, strict=True):
            if isinstance(outcome, ForerunError):
                failures.append(outcome)
            else:
                found[job] = outcome
        if failures:
            raise TrainingError(
                f"{len(failures)} of {len(self.distinct)} runs failed, the others are kept; the first: {failures[0]}"
            ) from failures[0]
        return [found[job] for job in self._jobs]


def _weight(job: Job) -> float:
    """Return about how long a run takes, in tokens of a model without layers."""
    config = job.config
    shape = config.shape
    layer = 4 * shape.hidden_size**2 + 3 * shape.hidden_size * shape.intermediate_size
    members = 0 if job.teacher is None else len(job.teacher.members)
    tokens = config.num_epochs * (config.unique_tokens or 1)
    return tokens * (1 + shape.num_layers * layer / 50_000) * (1 + members / 3)
