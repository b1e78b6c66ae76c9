"""Many runs on Ray: the cores and GPUs of this machine, or of a cluster that shares a folder with it."""

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError, TrainingError
from forerun.core.ray_session import connect_ray
from forerun.pretraining.grid import Grid, Outcome, outcome_of
from forerun.pretraining.jobs import Job, Report
from forerun.pretraining.ray_news import News
from forerun.pretraining.run_store import Run

_POLL_S: Final = 0.5


class RayExecutor:
    """One Ray task for each run.

    Corpus, store and members are read and written by their paths, so every node must see them under the same ones. A
    task whose process or node dies is begun again and goes on from the run's checkpoint.

    Args:
        address: Of a cluster, such as ``auto`` or ``ray://HOST:10001``; ``None`` starts Ray on this machine.
        num_workers: Runs at a time on this machine; ``None``: one for each core. Not with an address.
        gpus_per_run: Share of a GPU that a run gets; 0 for runs on a core.
        num_retries: How often a run is begun again after its process died.

    Raises:
        ConfigError: An option is out of range, or there is no cluster at the address.
        MissingDependencyError: Ray is not installed.
        TrainingError: Ray did not start.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        num_workers: int | None = None,
        gpus_per_run: float = 0.0,
        num_retries: int = 2,
    ) -> None:
        if num_workers is not None and num_workers < 1:
            raise ConfigError(f"num_workers={num_workers}: must be at least 1; one for each core is best")
        if num_workers is not None and address is not None:
            raise ConfigError(
                f"num_workers={num_workers} with address={address!r}: a cluster's cores are its own; leave one out"
            )
        if not (0 <= gpus_per_run <= 1 or gpus_per_run == int(gpus_per_run)):
            raise ConfigError(
                f"gpus_per_run={gpus_per_run}: must be a share of one GPU, such as 0.25, or a whole number of them"
            )
        self._ray = connect_ray(
            address=address,
            num_cpus=num_workers,
            purpose="an executor on Ray",
            option="address",
            failure=TrainingError,
            otherwise="use --executor local",
        )
        resources = self._ray.cluster_resources()
        self.num_workers = max(1, int(resources.get("CPU", 1)))
        if gpus_per_run > 0:
            num_gpus = resources.get("GPU", 0)
            if gpus_per_run > num_gpus:
                self._ray.shutdown()
                raise ConfigError(f"gpus_per_run={gpus_per_run}: Ray knows of {num_gpus:g} GPUs; take 0 for none")
            self.num_workers = min(self.num_workers, int(num_gpus / gpus_per_run))
        self._news = self._ray.remote(num_cpus=0)(News).remote()
        self._task = self._ray.remote(num_cpus=1, num_gpus=gpus_per_run, max_retries=num_retries)(_work)
        self._pending: list[Any] = []
        self._num_calls = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave Ray; runs under way are ended and go on another time."""
        for reference in self._pending:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()

    def make(self, jobs: Sequence[Job], *, report: Report = lambda done, total, detail: None) -> list[Run | None]:
        """Make every run, see :meth:`forerun.pretraining.executor.Executor.make`."""
        grid = Grid(jobs, report)
        self._num_calls += 1
        call = self._num_calls
        places: dict[Any, int] = {}
        for index in grid.longest_first():
            places[self._task.remote(self._news, call, index, _anywhere(grid.distinct[index]))] = index
        self._pending = list(places)
        outcomes: dict[int, Outcome] = {}
        while self._pending:
            done, self._pending = self._ray.wait(self._pending, num_returns=len(self._pending), timeout=_POLL_S)
            for index, heard in self._ray.get(self._news.take.remote(call)).items():
                grid.teller(index)(*heard)
            for reference in done:
                index = places[reference]
                outcomes[index] = self._outcome(reference, grid.distinct[index])
                grid.teller(index)(1, 1, "")
        return grid.in_order(outcomes[index] for index in range(len(grid.distinct)))

    def _outcome(self, reference: Any, job: Job) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            return TrainingError(
                f"a run of {job.store} was lost ({type(error).__name__}: {reason}); give the same command again, it "
                "goes on from its checkpoint"
            )
        return Run(job.store / outcome.folder.name, outcome.identity) if isinstance(outcome, Run) else outcome


def _work(news: Any, call: int, index: int, job: Job) -> Outcome:
    told: list[Any] = []  # one message at a time under way, so that a fast run doesn't flood the actor

    def report(done: int, total: int, detail: str) -> None:
        ray = import_optional("ray", extra="ray", purpose="an executor on Ray")
        if not told or ray.wait(told, timeout=0)[0]:
            told[:] = [news.tell.remote(call, index, done, total, detail)]

    return outcome_of(job, report)


def _anywhere(job: Job) -> Job:
    """Return a job whose paths don't depend on the folder that a process was started in."""
    teacher = job.teacher
    if teacher is not None:
        teacher = replace(teacher, members=tuple(member.resolve() for member in teacher.members))
    return replace(job, data=job.data.resolve(), store=job.store.resolve(), teacher=teacher)
