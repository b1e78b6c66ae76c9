"""Distillation: a student learns the law of an ensemble on the text, and on text that the ensemble made up."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

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
from forerun.pretraining.mixture import MixedBatch, MixedBatches, sampled_loss
from forerun.pretraining.prepared_corpus import PreparedCorpus
from forerun.pretraining.run_store import Run
from forerun.pretraining.sampled_text import SampledTextConfig, sampled_rows
from forerun.pretraining.train import Report, Task, next_token_loss, train_run

StudentLoss = Literal["kl", "text"]
"""``kl``: the teacher's whole law is the target; ``text``: only the next token is, sampled or real, as in the paper."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """What a student learns from its teacher.

    Attributes:
        teacher_weight: Share of the loss on real text that is the divergence from the teacher; the rest is that of the
            text. Not used with the loss ``text``.
        loss: What is the target.
        sampled: Text that the teacher makes up; ``None`` for none. It is no data: no document is read for it.
        sampled_share: Share of the rows that is sampled text, if there is any. Epochs count the real text, so a run
            has 1 / (1 - share) times the steps.
    """

    teacher_weight: float = 0.8
    loss: StudentLoss = "kl"
    sampled: SampledTextConfig | None = None
    sampled_share: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.teacher_weight <= 1:
            raise ConfigError(
                f"teacher_weight={self.teacher_weight}: must be above 0 and at most 1; 0.8 is usual, and for a student "
                "of the text alone there is 'forerun pretrain train'"
            )
        if self.loss not in get_args(StudentLoss):
            raise ConfigError(f"loss={self.loss!r}: must be one of {', '.join(get_args(StudentLoss))}")
        if not 0 < self.sampled_share < 1:
            raise ConfigError(
                f"sampled_share={self.sampled_share}: must be above 0 and below 1; 0.75 is usual, and a student of "
                "sampled text alone drifts away from the corpus"
            )
        if self.loss == "text" and self.sampled is None:
            raise ConfigError(
                "loss='text' without sampled text: the teacher would have no say; sample some, or take loss='kl'"
            )

    def identity(self) -> dict[str, Any]:
        """Return what names a student besides its config and its teacher; nothing that makes no difference."""
        found: dict[str, Any] = {}
        if self.loss == "kl":
            found["weight"] = self.teacher_weight
        if self.sampled is not None:
            found |= {"loss": self.loss, "sampled": asdict(self.sampled), "sampled_share": self.sampled_share}
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """How a student is trained.

    Attributes:
        student: Shape of the student and how it is optimised.
        distillation: What it learns from its teacher.
    """

    student: PretrainConfig = field(default_factory=PretrainConfig)
    distillation: Distillation = field(default_factory=Distillation)


def distill(
    corpus: PreparedCorpus,
    store: Path,
    teacher: EnsembleFile,
    config: DistillConfig,
    *,
    report: Report = lambda done, total, detail: None,
) -> Run:
    """Train a student of an ensemble, resumably, as :func:`forerun.pretraining.train.pretrain` does.

    On real text the teacher reads the same batches as the student: its law is there for every token of every epoch,
    with the context that the student has. On sampled text its law was kept when the text was sampled. A teacher of one
    member of the student's shape is self-distillation.

    Args:
        corpus: The corpus that the teacher's members were trained on.
        store: Folder of all runs; sampled text is in ``.sampled`` there, for all students of a teacher.
        teacher: Whose law to learn.
        config: How to train.
        report: Progress.

    Returns:
        The finished run; it can be a member of an ensemble like any other.

    Raises:
        ConfigError: The corpus is too small for the batch, the sampled text for a row, or a member is named twice.
        CheckpointError: A member is not finished, or of another corpus or tokenizer.
        TrainingError: The loss is no number, or the disk is full.

    Reference:
        Kim et al. 2025 (arXiv 2509.14786): text sampled from the teacher, mixed with the real text. Their target is the
        next token alone; here the teacher's law too.
    """
    members = open_members(teacher.members, corpus)
    identity = distill_identity(corpus.manifest.data_sha256, teacher, config)
    student, distillation = config.student, config.distillation

    def task(batches: EpochBatches) -> Task[MixedBatch] | Task[Tensor]:
        is_read = distillation.loss == "kl"
        decoders = [load_member(member).requires_grad_(False) for member in members if is_read]

        def text_loss(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
            return distillation_loss(
                logits_BTV,
                teacher_law(decoders, ids_BT[:, :-1], average=teacher.average),
                ids_BT[:, 1:],
                teacher_weight=distillation.teacher_weight,
            )

        if distillation.sampled is None:
            return Task(batches=batches, loss=lambda decoder, ids_BT: text_loss(decoder(ids_BT[:, :-1]), ids_BT))
        num_steps = student.num_epochs * batches.steps_per_epoch
        rows = sampled_rows(
            corpus,
            store,
            members,
            distillation.sampled,
            average=teacher.average,
            sequence_tokens=student.sequence_tokens,
            report=lambda done, total: report(0, num_steps, f"text sampled: {done} of {total} parts"),
        )

        def mixed_loss(decoder: Decoder, batch: MixedBatch) -> Tensor:
            ids_BT = torch.cat([batch.text, batch.sampled.ids.long()])
            if distillation.loss == "text":
                return next_token_loss(decoder, ids_BT)
            logits_BTV, num_text = decoder(ids_BT[:, :-1]), len(batch.text)
            total = logits_BTV.new_zeros(())
            if num_text:
                total = total + num_text * text_loss(logits_BTV[:num_text], batch.text)
            if num_sampled := len(batch.sampled):
                total = total + num_sampled * sampled_loss(logits_BTV[num_text:], batch.sampled)
            return total / len(ids_BT)

        mixed = MixedBatches(
            batches,
            rows,
            share=distillation.sampled_share,
            batch_sequences=student.batch_sequences,
            seed=student.seed,
        )
        return Task(batches=mixed, loss=mixed_loss)

    return train_run(corpus, store, student, identity=identity, task=task, report=report)


def distill_identity(data_sha256: str, teacher: EnsembleFile, config: DistillConfig) -> dict[str, Any]:
    """Return what names the run of a student: the folders' names are the hashes of the members."""
    return {
        "kind": "distill",
        "config": config.student.identity(),
        "teacher": {
            "average": teacher.average,
            "members": [member.resolve().name for member in teacher.members],
            **config.distillation.identity(),
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
    """
    log_q_BTV = log_softmax(logits_BTV, dim=-1)
    divergence = (teacher_BTV.exp() * (teacher_BTV - log_q_BTV)).sum(dim=-1).mean()
    text = cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
    return teacher_weight * divergence + (1 - teacher_weight) * text
