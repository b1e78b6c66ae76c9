"""An ensemble of runs: the average of its members' laws, and how its loss falls with their number."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import log_softmax

from forerun.core.atomic_files import write_json_file
from forerun.core.errors import CheckpointError, ConfigError
from forerun.models.decoder import Decoder
from forerun.models.ensemble_file import ENSEMBLE_FILE, EnsembleFile, read_ensemble_file
from forerun.models.load import MODEL_FOLDER, build_decoder, load_checkpoint
from forerun.nn.law_average import AVERAGES, Average
from forerun.pretraining.evaluation import HeldOutLoss, held_out_losses
from forerun.pretraining.prepared_corpus import PreparedCorpus
from forerun.pretraining.run_store import Run, read_run


def average_law(logits: Sequence[Float[Tensor, "*batch vocab"]], *, average: Average) -> Float[Tensor, "*batch vocab"]:
    r"""Return the log-probabilities of an ensemble.

    .. math:: \log \tfrac1K \sum_k \operatorname{softmax}(\ell_k) \quad\text{or}\quad
              \log \operatorname{softmax}\bigl(\tfrac1K \sum_k \ell_k\bigr)

    Args:
        logits: Of each member.
        average: ``probability`` is the mixture: its loss is at most the members' mean loss. ``logit`` is their
            normalised product, which is sharper.

    Reference:
        Kim et al. 2025 (arXiv 2509.14786) average logits. The mixture is offered too, for its loss is
        bounded by that of its best member plus log K.
    """
    stacked = torch.stack(list(logits))
    if average == "logit":
        return log_softmax(stacked.mean(dim=0), dim=-1)
    count = torch.tensor(float(len(logits)))
    return torch.logsumexp(log_softmax(stacked, dim=-1), dim=0) - count.log()


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleResult:
    """What an ensemble reaches on the tune split.

    Attributes:
        members: Folder of each run, in order.
        member_losses: Each alone.
        by_count: For each average, the loss of the first 1, 2, ... members.
    """

    members: tuple[str, ...]
    member_losses: tuple[HeldOutLoss, ...]
    by_count: dict[Average, tuple[HeldOutLoss, ...]]

    @property
    def best_average(self) -> Average:
        """The average with the lower loss over all members."""
        return min(self.by_count, key=lambda average: self.by_count[average][-1].loss_nats)


def evaluate_ensemble(
    folders: Sequence[Path], corpus: PreparedCorpus, *, report: Callable[[int, int], None] = lambda done, total: None
) -> EnsembleResult:
    """Measure every member alone, and the ensembles of the first 1 to K members by both averages.

    Args:
        folders: Finished runs of ``forerun pretrain train``.
        corpus: The corpus they were trained on.
        report: Told (tokens done, all of them).

    Raises:
        ConfigError: A run is named twice, or none is.
        CheckpointError: A run is not finished, or was trained on other data or with another tokenizer.
    """
    runs = open_members(folders, corpus)
    decoders = [load_member(run) for run in runs]
    stream, num_bytes = corpus.tune_part(max(int(run.identity["config"]["tune_tokens"]) for run in runs))
    width = min(int(run.identity["config"]["sequence_tokens"]) for run in runs)
    num_done = 0

    def laws(ids_BT: Tensor) -> Iterator[Tensor]:
        nonlocal num_done
        logits: list[Tensor] = []
        for decoder in decoders:
            logits.append(decoder(ids_BT))
            yield log_softmax(logits[-1], dim=-1)
            for average in AVERAGES:
                yield average_law(logits, average=average)
        num_done += ids_BT.numel()
        report(num_done, len(stream.ids) - 1)

    losses = held_out_losses(laws, stream, num_bytes=num_bytes, sequence_tokens=width)
    stride = 1 + len(AVERAGES)
    return EnsembleResult(
        members=tuple(str(run.folder) for run in runs),
        member_losses=tuple(losses[::stride]),
        by_count={average: tuple(losses[1 + place :: stride]) for place, average in enumerate(AVERAGES)},
    )


def write_ensemble(folder: Path, result: EnsembleResult, *, average: Average, data_sha256: str) -> None:
    """Write an ensemble checkpoint: its members' folders, its average and what it reached.

    Args:
        folder: Made if it does not exist; ``ensemble.json`` in it is replaced.
        result: What was measured.
        average: The average to serve it with.
        data_sha256: Hash of the corpus.

    Raises:
        ConfigError: The folder can't be written.
    """
    payload = {
        "kind": "ensemble",
        "average": average,
        "members": [str(Path(member).resolve()) for member in result.members],
        "data_sha256": data_sha256,
        "tune": ensemble_json(result),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json_file(folder / ENSEMBLE_FILE, payload)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written ({error.strerror}); name another folder") from error


def ensemble_json(result: EnsembleResult) -> dict[str, Any]:
    """Return a result as JSON types."""
    return json.loads(json.dumps(asdict(result)))


def read_ensemble(folder: Path) -> EnsembleFile:
    """Read an ensemble checkpoint, or take a run's folder for an ensemble of one.

    Raises:
        CheckpointError: The folder is neither, or its file is damaged.
    """
    if (folder / ENSEMBLE_FILE).is_file():
        return read_ensemble_file(folder)
    return EnsembleFile(members=(read_run(folder).folder,), average="probability")


def load_member(run: Run) -> Decoder:
    """Return the decoder of a finished run, for evaluation."""
    return build_decoder(load_checkpoint(run.folder / MODEL_FOLDER)).eval()


def open_members(folders: Sequence[Path], corpus: PreparedCorpus) -> list[Run]:
    """Return the runs in some folders after a check that they can be averaged on a corpus.

    Raises:
        ConfigError: A run is named twice, or none is.
        CheckpointError: A run is not finished, or was trained on other data or with another tokenizer.
    """
    runs = [read_run(folder) for folder in folders]
    if not runs:
        raise ConfigError("an ensemble of 0 runs: must have at least 1; name the folders that training printed")
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise ConfigError(f"{twice}: is named twice; an ensemble takes each run once")
    for run in runs:
        result = run.result()
        if result is None:
            raise CheckpointError(f"{run.folder}: is not finished; give its training command again, it goes on")
        if result["vocab_digest"] != corpus.manifest.vocab_digest:
            raise CheckpointError(
                f"{run.folder}: has another tokenizer than the corpus; members of an ensemble must share one"
            )
        if run.identity["data_sha256"] != corpus.manifest.data_sha256:
            raise CheckpointError(
                f"{run.folder}: was trained on other data (SHA-256 {run.identity['data_sha256']}) than this corpus "
                f"({corpus.manifest.data_sha256}): its loss would not be held out; name the corpus it was trained on"
            )
    return runs
