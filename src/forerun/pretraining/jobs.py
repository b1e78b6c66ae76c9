"""Runs as values that another process can make: what to train on which corpus, into which store."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from forerun.core.errors import CheckpointError
from forerun.models.ensemble_file import EnsembleFile
from forerun.pretraining.config import PretrainConfig
from forerun.pretraining.distill import Distillation, DistillConfig, distill, distill_identity
from forerun.pretraining.prepared_corpus import PreparedCorpus, open_corpus
from forerun.pretraining.run_store import Run
from forerun.pretraining.train import pretrain, pretrain_identity

Report = Callable[[int, int, str], None]
"""Told (done, total, detail)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run.

    Attributes:
        data: Folder of the prepared corpus.
        store: Folder of all runs.
        config: How to train.
        teacher: Whose law to learn; ``None`` for a run on the text alone.
        distillation: What to learn from it; not used without one.
    """

    data: Path
    store: Path
    config: PretrainConfig
    teacher: EnsembleFile | None = None
    distillation: Distillation = field(default_factory=Distillation)

    def identity(self, data_sha256: str) -> dict[str, Any]:
        """Return what names the run in its store."""
        if self.teacher is None:
            return pretrain_identity(data_sha256, self.config)
        return distill_identity(data_sha256, self.teacher, self._distillation())

    def make(self, report: Report = lambda done, total, detail: None) -> Run:
        """Make the run in this process, or go on with it, or return it if it is done.

        Raises:
            ConfigError: The corpus is too small for the config.
            CheckpointError: Another process makes the same run, or a folder is damaged.
            TrainingError: The loss is no number, or the disk is full.
        """
        corpus = _corpus(self.data)
        if self.teacher is None:
            return pretrain(corpus, self.store, self.config, report=report)
        return distill(corpus, self.store, self.teacher, self._distillation(), report=report)

    def _distillation(self) -> DistillConfig:
        return DistillConfig(student=self.config, distillation=self.distillation)


def tune_loss_of(run: Run) -> float:
    """Return the final loss of a finished run on its part of the tune split, in nats a token.

    Raises:
        CheckpointError: The run is not finished.
    """
    result = run.result()
    if result is None:
        raise CheckpointError(f"{run.folder}: is not finished; give its training command again, it goes on")
    return float(result["tune"]["loss_nats"])


@lru_cache(maxsize=2)
def _corpus(folder: Path) -> PreparedCorpus:
    """Open a corpus once a process: its hashes take a while."""
    return open_corpus(folder)
