"""The whole study: tune both recipes over sizes, ensembles, more text, students; every run in one store."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from forerun.core.env import available_cores, cpu_info, package_versions
from forerun.core.errors import ConfigError, TrainingError
from forerun.models.ensemble_file import EnsembleFile
from forerun.pretraining.config import SHAPES, PretrainConfig, Recipe, Size
from forerun.pretraining.ensemble import EnsembleResult, evaluate_ensemble
from forerun.pretraining.executor import Executor, LocalExecutor
from forerun.pretraining.jobs import Job
from forerun.pretraining.prepare import PrepareConfig, prepare_corpus
from forerun.pretraining.prepared_corpus import PreparedCorpus, open_corpus
from forerun.pretraining.run_store import Run, read_run
from forerun.pretraining.tune import TuneResult, tune, tune_json
from forerun.recipes.pretrain_study.scale import StudyScale
from forerun.recipes.pretrain_study.students import best_student, sampled_jobs, student_jobs
from forerun.recipes.pretrain_study.study_file import (
    DATA_FOLDER,
    RUNS_FOLDER,
    EnsembleOfSize,
    Student,
    Study,
    TunedSize,
    write_study,
)

Report = Callable[[str, int, int, str], None]
"""Told (stage, done, total, detail); the stage ``study`` is the whole."""

_STAGES: Final = ("standard", "regularised", "ensembles", "more text", "students")


def reproduce(
    folder: Path,
    scale: StudyScale,
    *,
    corpus: str = "default",
    data: Path | None = None,
    num_workers: int | None = None,
    executor: Executor | None = None,
    report: Report = lambda stage, done, total, detail: None,
) -> Study:
    """Make every run of a study, or those that are missing, and write ``study.json``; the test split stays closed.

    Args:
        folder: Gets ``data``, ``runs`` and ``study.json``.
        scale: How large it is.
        corpus: What to prepare, as ``forerun pretrain prepare`` takes it; not used with ``data`` or once prepared.
        data: A prepared corpus instead.
        num_workers: Processes, one thread each; ``None``: one for each core.
        executor: What makes the runs instead of such processes; ended with the study.
        report: Progress.

    Returns:
        The study.

    Raises:
        ConfigError: The corpus has too little text for the scale.
        CorpusError: The corpus can't be read or was changed.
        TrainingError: A run failed; finished ones are kept.
    """
    with executor or LocalExecutor(num_workers) as workers:
        maker = _Maker(folder, scale, workers, report)
        with maker.timed("prepare"):
            maker.open(corpus, data)
        standard = maker.tuned("standard")
        regularised = maker.tuned("regularised")
        ensembles, results = maker.ensembles(regularised)
        more_text = maker.more_text(standard)
        students = maker.students(regularised, ensembles, results)
    study = Study(
        scale=asdict(scale),
        corpus=maker.corpus.manifest.source,
        data=DATA_FOLDER if data is None else str(data.resolve()),
        data_sha256=maker.corpus.manifest.data_sha256,
        standard=tuple(_tuned_size(size, result) for size, result in standard.items()),
        more_text=tuple(_tuned_size(size, result) for size, result in more_text),
        regularised=tuple(_tuned_size(size, result) for size, result in regularised.items()),
        ensembles=tuple(ensembles.values()),
        students=tuple(students),
        num_runs=sum(1 for _ in maker.store.glob("*/result.json")),
        elapsed_s=maker.elapsed_s,
        machine=_machine(workers.num_workers),
    )
    write_study(folder, study)
    return study


class _Maker:
    """A study under way."""

    corpus: PreparedCorpus

    def __init__(self, folder: Path, scale: StudyScale, executor: Executor, report: Report) -> None:
        self._folder, self._scale, self._executor, self._report = folder, scale, executor, report
        self.store = folder / RUNS_FOLDER
        self.elapsed_s: dict[str, float] = {}
        self._num_cells, self._num_done = len(_STAGES) * len(scale.sizes), 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.elapsed_s[stage] = self.elapsed_s.get(stage, 0.0) + time.monotonic() - start

    def open(self, corpus: str, data: Path | None) -> None:
        self._data = self._folder / DATA_FOLDER if data is None else data
        if data is None and not self._data.is_dir():
            config = PrepareConfig(vocab_size=self._scale.vocab_size, most_bytes=self._scale.most_bytes)
            prepare_corpus(
                corpus, self._data, config, report=lambda stage, done, total: self._report(stage, done, total, "")
            )
        self.corpus = open_corpus(self._data)
        available = len(self.corpus.train.ids)
        if available < self._scale.unique_tokens:
            raise ConfigError(
                f"{self._data}: has {available:,} training tokens, the scale {self._scale.name!r} is of "
                f"{self._scale.unique_tokens:,}; give more text, or take a smaller scale"
            )

    def tuned(self, recipe: Recipe) -> dict[Size, TuneResult]:
        """Tune every size, from the winner of the one below."""
        found: dict[Size, TuneResult] = {}
        like: PretrainConfig | None = None
        for size in self._scale.sizes:
            with self._cell(recipe, size):
                config = self._scale.tune_config(size, recipe, like)
                found[size] = tune(self._data, self.store, config, self._executor, report=self._tell(recipe))
            like = found[size].best
        return found

    def ensembles(
        self, regularised: dict[Size, TuneResult]
    ) -> tuple[dict[Size, EnsembleOfSize], dict[Size, list[Run]]]:
        """Make an ensemble of each size, of the best single model's settings or of settings that fit the text more.

        Two members of each settings tell, by the law C + A / K, what all members will reach; the settings with the
        lowest loss get all members.

        Reference:
            Kim et al. 2025 (arXiv 2509.14786): members want about 2x the epochs and half the weight decay; there the
            limit in K decides. It promises more than few members keep: on 33k tokens, settings with a limit 0.06 nats
            lower lost by 0.02 nats with five members.
        """
        found: dict[Size, EnsembleOfSize] = {}
        runs_of: dict[Size, list[Run]] = {}
        for size, tuned in regularised.items():
            with self._cell("ensembles", size):
                compared: list[tuple[float, PretrainConfig]] = []
                for settings in self._member_settings(tuned.best):
                    result = self._average(self._members(settings, 2))
                    alone = sum(loss.loss_nats for loss in result.member_losses) / 2
                    pair = result.by_count["probability"][1].loss_nats
                    compared.append((2 * pair - alone + 2 * (alone - pair) / self._scale.num_members, settings))
                predicted, best = min(compared, key=lambda item: item[0])
                runs_of[size] = self._members(best, self._scale.num_members)
                result = self._average(runs_of[size])
            found[size] = EnsembleOfSize(
                size=size,
                members=tuple(run.folder.name for run in runs_of[size]),
                tune_loss_nats=result.by_count["probability"][-1].loss_nats,
                candidates=tuple(
                    {
                        "weight_decay": settings.weight_decay,
                        "num_epochs": settings.num_epochs,
                        "predicted_tune_loss_nats": value,
                        "is_chosen": value == predicted,
                    }
                    for value, settings in compared
                ),
            )
        return found, runs_of

    def _member_settings(self, best: PretrainConfig) -> list[PretrainConfig]:
        """Return candidates for members: as alone; for twice the epochs, with the decay as it is and halved."""
        longer = replace(best, num_epochs=min(2 * best.num_epochs, self._scale.regularised_epochs[-1]))
        return list(dict.fromkeys([best, longer, replace(longer, weight_decay=best.weight_decay / 2)]))

    def more_text(self, standard: dict[Size, TuneResult]) -> list[tuple[Size, TuneResult]]:
        """Tune the standard recipe on more text, at the best size so far and the one above it.

        Of the two the better by the tune loss goes on to the next amount.
        """
        sizes = list(standard)
        best = min(standard, key=lambda size: standard[size].certificate.loss_nats)
        like = standard[best].best
        found: list[tuple[Size, TuneResult]] = []
        for multiple in self._scale.multiples[1:]:
            tokens = multiple * self._scale.unique_tokens
            if tokens > len(self.corpus.train.ids):
                break
            tried: dict[Size, TuneResult] = {}
            for size in sizes[sizes.index(best) : sizes.index(best) + 2]:
                with self._cell("more text", f"{multiple}x {size}"):
                    config = self._scale.tune_config(size, "standard", replace(like, unique_tokens=tokens))
                    tried[size] = tune(self._data, self.store, config, self._executor, report=self._tell("more text"))
            best = min(tried, key=lambda size: tried[size].certificate.loss_nats)
            like = tried[best].best
            found.append((best, tried[best]))
        return found

    def students(
        self,
        regularised: dict[Size, TuneResult],
        ensembles: dict[Size, EnsembleOfSize],
        runs_of: dict[Size, list[Run]],
    ) -> list[Student]:
        """Distil the best ensemble into each student size, and its first member into one of its own size."""
        best = min(ensembles, key=lambda size: ensembles[size].tune_loss_nats)
        teachers: list[tuple[str, Size, list[Run]]] = [
            *(("ensemble", size, runs_of[best]) for size in self._scale.student_sizes),
            ("self", best, runs_of[best][:1]),
        ]
        found: list[Student] = []
        for kind, size, members in teachers:
            with self._cell("students", f"{kind} {size}"):
                found.append(self._student(kind, size, members, like=self._student_start(size, regularised)))
        return found

    def _student_start(self, size: Size, regularised: dict[Size, TuneResult]) -> PretrainConfig:
        """Return the settings of the largest tuned size that is no larger."""
        order = list(SHAPES)
        tuned = [result for other, result in regularised.items() if order.index(other) <= order.index(size)]
        return (tuned or list(regularised.values())[:1])[-1].best

    def _student(self, kind: str, size: Size, members: Sequence[Run], *, like: PretrainConfig) -> Student:
        teacher = EnsembleFile(members=tuple(run.folder for run in members), average="probability")
        jobs = student_jobs(self._job(like), size, like, teacher, self._scale)
        runs = self._executor.make(jobs, report=self._tell("students"))
        if more := sampled_jobs(jobs, runs, self._scale):
            jobs, runs = [*jobs, *more], [*runs, *self._executor.make(more, report=self._tell("students"))]
        return best_student(kind, size, teacher, jobs, runs)

    def _members(self, settings: PretrainConfig, count: int) -> list[Run]:
        jobs = [self._job(replace(settings, seed=settings.seed + number)) for number in range(count)]
        runs = self._executor.make(jobs, report=self._tell("ensembles"))
        members = [run for run in runs if run is not None]
        if len(members) < count:
            raise TrainingError(
                f"{count - len(members)} of {count} members diverged at learning rate {settings.learning_rate:g}; put "
                "lower rates on the ladder"
            )
        return members

    def _job(self, config: PretrainConfig) -> Job:
        return Job(data=self._data, store=self.store, config=config)

    def _average(self, runs: Sequence[Run]) -> EnsembleResult:
        return evaluate_ensemble([run.folder for run in runs], self.corpus)

    @contextmanager
    def _cell(self, stage: str, detail: str) -> Iterator[None]:
        """Count a cell of the study as done at its end; what a stage has more or fewer of is scaled to its share."""
        with self.timed(stage):
            self._report("study", round(self._num_done), self._num_cells, f"{stage} {detail}")
            yield
        self._num_done += len(self._scale.sizes) / self._cells_of(stage)
        self._report("study", round(self._num_done), self._num_cells, f"{stage} {detail} done")

    def _cells_of(self, stage: str) -> int:
        if stage == "more text":
            return max(1, 2 * (len(self._scale.multiples) - 1))
        return len(self._scale.student_sizes) + 1 if stage == "students" else len(self._scale.sizes)

    def _tell(self, stage: str) -> Callable[[int, int, str], None]:
        return lambda done, total, detail: self._report(stage, done, total, detail)


def _tuned_size(size: Size, result: TuneResult) -> TunedSize:
    return TunedSize(
        size=size,
        unique_tokens=result.best.unique_tokens or 0,
        runs=tuple(folder.name for folder in result.folders),
        tuning=tune_json(result) | {"runs": [folder.name for folder in result.folders]},
    )


def _machine(num_workers: int) -> dict[str, Any]:
    return {
        "versions": {"python": platform.python_version()}
        | package_versions(("forerun", "torch", "numpy", "tokenizers")),
        "cpu": cpu_info().model_name,
        "available_cores": len(available_cores()),
        "num_workers": num_workers,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def run_of(folder: Path, name: str) -> Run:
    """Return a run of a study by its hash.

    Raises:
        CheckpointError: It is not in the study's store.
    """
    return read_run(folder / RUNS_FOLDER / name)
