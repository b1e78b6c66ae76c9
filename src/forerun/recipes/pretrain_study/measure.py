"""Opens the test split, once, and keeps what every run of a study loses at every token of it."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from forerun.core.atomic_files import write_json_file
from forerun.core.errors import CheckpointError, CorpusError
from forerun.models.decoder import Decoder
from forerun.nn.law_average import Average
from forerun.pretraining.ensemble import average_law, load_member
from forerun.pretraining.evaluation import document_starts, held_out_token_nats
from forerun.pretraining.prepared_corpus import open_test
from forerun.pretraining.run_store import Run
from forerun.recipes.pretrain_study.reproduce import run_of
from forerun.recipes.pretrain_study.study_file import Study

RECORD_FILE: Final = "test_split.json"
_LOSSES_FILE: Final = "test_losses.npz"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurements:
    """What the test split says.

    Attributes:
        token_nats: Loss at each token, by the hash of a run.
        logit_nats: The same of the logit average of all members, by the ensemble's size.
        document_starts: Where each document's predicted tokens start.
        results: ``result.json`` of each run.
        settings: ``config`` of each run.
        num_bytes: Bytes of the text.
        opened_at: When the split was opened, once for each time.
    """

    token_nats: dict[str, Float32[np.ndarray, " tokens"]]
    logit_nats: dict[str, Float32[np.ndarray, " tokens"]]
    document_starts: Int64[np.ndarray, " documents"]
    results: dict[str, dict[str, Any]]
    settings: dict[str, dict[str, Any]]
    num_bytes: int
    opened_at: tuple[str, ...]

    @property
    def document_tokens(self) -> list[int]:
        """Predicted tokens of each document."""
        num_tokens = len(next(iter(self.token_nats.values())))
        return np.diff([*self.document_starts, num_tokens]).tolist()

    def document_nats(self, run: str) -> Float64[np.ndarray, " documents"]:
        """Return a run's loss summed over each document."""
        return self.by_document(self.token_nats[run])

    def by_document(self, nats_T: Float32[np.ndarray, " tokens"]) -> Float64[np.ndarray, " documents"]:
        """Return losses at tokens summed over each document."""
        return np.add.reduceat(nats_T.astype(np.float64), self.document_starts)


def measure(
    folder: Path, study: Study, *, report: Callable[[int, int], None] = lambda done, total: None
) -> Measurements:
    """Measure every run on the test split, or read what was measured when the same runs were.

    Args:
        folder: The study's folder; gets ``test_split.json`` and the losses.
        study: What to measure.
        report: Told (runs done, all of them).

    Raises:
        CheckpointError: A run is missing or not finished.
        CorpusError: The corpus is not the one of the study, or its test split is too small.
    """
    names = study.all_runs()
    runs = {name: run_of(folder, name) for name in names}
    results = {name: _result(run) for name, run in runs.items()}
    identity = {"runs": names, "data_sha256": study.data_sha256, "test_tokens": study.scale["test_tokens"]}
    record = _record(folder)
    if record.get("identity") == identity and (folder / _LOSSES_FILE).is_file():
        with np.load(folder / _LOSSES_FILE, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    else:
        arrays, num_bytes = _open_and_measure(folder, study, runs, report=report)
        np.savez_compressed(folder / _LOSSES_FILE, allow_pickle=False, **arrays)
        opened = [*record.get("opened_at", []), datetime.now(UTC).isoformat(timespec="seconds")]
        record = {"identity": identity, "num_bytes": num_bytes, "opened_at": opened}
        write_json_file(folder / RECORD_FILE, record)
    return Measurements(
        token_nats={name: arrays[f"run-{name}"] for name in names},
        logit_nats={ensemble.size: arrays[f"logit-{ensemble.size}"] for ensemble in study.ensembles},
        document_starts=arrays["document_starts"],
        results=results,
        settings={name: run.identity["config"] for name, run in runs.items()},
        num_bytes=record["num_bytes"],
        opened_at=tuple(record["opened_at"]),
    )


def _open_and_measure(
    folder: Path, study: Study, runs: Mapping[str, Run], *, report: Callable[[int, int], None]
) -> tuple[dict[str, np.ndarray], int]:
    data = folder / study.data
    stream, num_bytes = open_test(data, int(study.scale["test_tokens"]))
    starts = document_starts(stream)
    if len(starts) < 2:
        raise CorpusError(
            f"{data}: its test split has {len(starts)} document, at least 2 are needed for an interval; prepare a "
            "corpus of more documents"
        )
    arrays: dict[str, np.ndarray] = {"document_starts": starts}
    laws: dict[str, Callable[[Tensor], Iterable[Tensor]]] = {}
    for name, run in runs.items():
        laws[f"run-{name}"] = _average([run], average="probability")
    for ensemble in study.ensembles:
        laws[f"logit-{ensemble.size}"] = _average([runs[name] for name in ensemble.members], average="logit")
    for number, (name, law) in enumerate(laws.items(), start=1):
        [arrays[name]] = held_out_token_nats(law, stream, sequence_tokens=int(study.scale["sequence_tokens"]))
        report(number, len(laws))
    return arrays, num_bytes


def _average(runs: Sequence[Run], *, average: Average) -> Callable[[Tensor], Iterator[Tensor]]:
    """Return the law of an average, of one run its own; models are loaded when it is first asked for."""
    decoders: list[Decoder] = []

    def laws(ids_BT: Tensor) -> Iterator[Tensor]:
        if not decoders:
            decoders.extend(load_member(run) for run in runs)
        yield average_law([decoder(ids_BT) for decoder in decoders], average=average)

    return laws


def _result(run: Run) -> dict[str, Any]:
    result = run.result()
    if result is None:
        raise CheckpointError(f"{run.folder}: is not finished; give 'forerun pretrain reproduce' again, it goes on")
    return result


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
