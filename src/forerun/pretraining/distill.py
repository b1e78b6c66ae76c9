"""Distillation: a student learns the law of an ensemble, token by token, mixed with the text itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from forerun.core.errors import ConfigError
from forerun.models.decoder import Decoder
from forerun.models.ensemble_file import EnsembleFile
from forerun.nn.law_average import Average
from forerun.pretraining.batches import EpochBatches
from forerun.pretraining.config import PretrainConfig
from forerun.pretraining.ensemble import average_law, load_member, open_members
from forerun.pretraining.prepared_corpus import PreparedCorpus
from forerun.pretraining.run_store import Run
from forerun.pretraining.train import Report, Task, train_run


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """How a student is trained.

    Attributes:
        student: Shape of the student and how it is optimised.
        teacher_weight: Share of the loss that is the divergence from the teacher; the rest is that of the text.
    """

    student: PretrainConfig = field(default_factory=PretrainConfig)
    teacher_weight: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.teacher_weight <= 1:
            raise ConfigError(
                f"teacher_weight={self.teacher_weight}: must be above 0 and at most 1; 0.8 is usual, and for a student "
                "of the text alone there is 'forerun pretrain train'"
            )


def distill(
    corpus: PreparedCorpus,
    store: Path,
    teacher: EnsembleFile,
    config: DistillConfig,
    *,
    report: Report = lambda done, total, detail: None,
) -> Run:
    """Train a student of an ensemble, resumably, as :func:`forerun.pretraining.train.pretrain` does.

    The teacher reads the same batches as the student: its law is there for every token of every epoch, with the
    context that the student has. A teacher of one member of the student's shape is self-distillation.

    Args:
        corpus: The corpus that the teacher's members were trained on.
        store: Folder of all runs.
        teacher: Whose law to learn.
        config: How to train.
        report: Progress.

    Returns:
        The finished run; it can be a member of an ensemble like any other.

    Raises:
        ConfigError: The corpus is too small for the batch, or a member is named twice.
        CheckpointError: A member is not finished, or of another corpus or tokenizer.
        TrainingError: The loss is no number, or the disk is full.
    """
    members = open_members(teacher.members, corpus)
    identity = distill_identity(corpus.manifest.data_sha256, teacher, config)

    def task(batches: EpochBatches) -> Task[Tensor]:
        decoders = [load_member(member).requires_grad_(False) for member in members]

        def loss(decoder: Decoder, ids_BT: Tensor) -> Tensor:
            return distillation_loss(
                decoder(ids_BT[:, :-1]),
                teacher_law(decoders, ids_BT[:, :-1], average=teacher.average),
                ids_BT[:, 1:],
                teacher_weight=config.teacher_weight,
            )

        return Task(batches=batches, loss=loss)

    return train_run(corpus, store, config.student, identity=identity, task=task, report=report)


def distill_identity(data_sha256: str, teacher: EnsembleFile, config: DistillConfig) -> dict[str, Any]:
    """Return what names the run of a student: the folders' names are the hashes of the members."""
    return {
        "kind": "distill",
        "config": config.student.identity(),
        "teacher": {
            "average": teacher.average,
            "members": [member.resolve().name for member in teacher.members],
            "weight": config.teacher_weight,
        },
        "data_sha256": data_sha256,
    }


def teacher_law(
    decoders: Sequence[Decoder], ids_BT: Int64[Tensor, "batch tokens"], *, average: Average
) -> Float[Tensor, "batch tokens vocab"]:
    """Return the log-probabilities of the average of some decoders, without gradient."""
    with torch.no_grad():
        return average_law([decoder(ids_BT) for decoder in decoders], average=average)


def distillation_loss(
    logits_BTV: Float[Tensor, "batch tokens vocab"],
    teacher_BTV: Float[Tensor, "batch tokens vocab"],
    targets_BT: Int64[Tensor, "batch tokens"],
    *,
    teacher_weight: float,
) -> Float[Tensor, ""]:
    r"""Return the loss of a student in nats a token.

    .. math:: w \operatorname{KL}(p \,\|\, q) + (1 - w) (-\log q(y))

    Args:
        logits_BTV: Of the student, whose law is q.
        teacher_BTV: Log-probabilities p of the teacher.
        targets_BT: The text's own next tokens y.
        teacher_weight: w.

    Reference:
        Kim et al. 2025 (arXiv 2509.14786) sample text from the teacher and mix it with the real text. Here the whole
        law at real text takes the place of the samples.
    """
    log_q_BTV = log_softmax(logits_BTV, dim=-1)
    divergence = (teacher_BTV.exp() * (teacher_BTV - log_q_BTV)).sum(dim=-1).mean()
    text = cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
    return teacher_weight * divergence + (1 - teacher_weight) * text
