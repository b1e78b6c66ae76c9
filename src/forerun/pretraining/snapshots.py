"""Members one after the other: snapshots at the ends of a cyclic learning rate, and chains of distillation."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from forerun.core.errors import ConfigError
from forerun.models.decoder import Decoder
from forerun.pretraining.batches import EpochBatches
from forerun.pretraining.config import PretrainConfig
from forerun.pretraining.distill import distillation_loss, teacher_law
from forerun.pretraining.ensemble import load_member
from forerun.pretraining.prepared_corpus import PreparedCorpus
from forerun.pretraining.run_store import Run
from forerun.pretraining.train import Report, Task, next_token_loss, pretrain, train_run

MemberStart = Literal["previous", "fresh"]
"""``previous``: the next cycle of one training, from the weights of the last snapshot; ``fresh``: another seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotConfig:
    """A row of members, each made with the one before it at hand.

    Attributes:
        cycle: How a cycle is trained: its epochs and its schedule are one cycle's, from peak to 0. Its seed is the
            first cycle's; every cycle has the next one.
        num_cycles: Members.
        chain_weight: Share of the loss, from the second member on, that is the divergence from the member before.
        start: Where a member begins.
    """

    cycle: PretrainConfig = field(default_factory=PretrainConfig)
    num_cycles: int = 4
    chain_weight: float = 0.0
    start: MemberStart = "previous"

    def __post_init__(self) -> None:
        if self.num_cycles < 1:
            raise ConfigError(f"num_cycles={self.num_cycles}: must be at least 1; 4 is a start")
        if not 0 <= self.chain_weight <= 1:
            raise ConfigError(f"chain_weight={self.chain_weight}: must be in [0, 1]; 0 is no chain, 0.5 is usual")
        if self.start not in get_args(MemberStart):
            raise ConfigError(f"start={self.start!r}: must be one of {', '.join(get_args(MemberStart))}")


def train_snapshots(
    corpus: PreparedCorpus,
    store: Path,
    config: SnapshotConfig,
    *,
    report: Callable[[int, int, str], None] = lambda done, total, detail: None,
) -> list[Run]:
    """Train the members of a row, resumably; each is a run like any other, named by all that it goes back to.

    A cycle has a schedule, a warm-up and moments of its own; its text comes in the order of its own seed. The first
    member is the run that ``forerun pretrain train`` makes. With fresh starts and no chain all are such runs: the
    independent ensemble.

    Args:
        corpus: What to learn from and to tune on.
        store: Folder of all runs.
        config: How many members, and how they are made.
        report: Progress over all of them.

    Returns:
        The members, in their order.

    Raises:
        ConfigError: The corpus is too small for the batch.
        CheckpointError: Another process makes the same run, or a folder is damaged.
        TrainingError: The loss is no number, or the disk is full.

    Reference:
        Huang et al. 2017 (arXiv 1704.00109) for snapshots; Kim et al. 2025 (arXiv 2509.14786) for independent members.
    """
    members: list[Run] = []
    for number in range(config.num_cycles):
        cycle = replace(config.cycle, seed=config.cycle.seed + number)
        tell = _teller(report, number, config.num_cycles)
        if not members or (config.start == "fresh" and config.chain_weight == 0):
            members.append(pretrain(corpus, store, cycle, report=tell))
        else:
            members.append(_next_member(corpus, store, members[-1], cycle, config, report=tell))
    return members


def _next_member(
    corpus: PreparedCorpus, store: Path, previous: Run, cycle: PretrainConfig, config: SnapshotConfig, *, report: Report
) -> Run:
    identity: dict[str, Any] = {
        "kind": "snapshot",
        "config": cycle.identity(),
        "previous": previous.folder.resolve().name,
        "start": config.start,
        "chain_weight": config.chain_weight,
        "data_sha256": corpus.manifest.data_sha256,
    }

    def task(batches: EpochBatches) -> Task[torch.Tensor]:
        teacher = load_member(previous).requires_grad_(False)

        def chained_loss(decoder: Decoder, ids_BT: torch.Tensor) -> torch.Tensor:
            inputs_BT = ids_BT[:, :-1]
            law_BTV = teacher_law([teacher], inputs_BT, average="probability")
            return distillation_loss(decoder(inputs_BT), law_BTV, ids_BT[:, 1:], teacher_weight=config.chain_weight)

        return Task(
            batches=batches,
            loss=chained_loss if config.chain_weight > 0 else next_token_loss,
            start=load_member(previous).train() if config.start == "previous" else None,
        )

    return train_run(corpus, store, cycle, identity=identity, task=task, report=report)


def _teller(report: Callable[[int, int, str], None], number: int, count: int) -> Report:
    """Return what reports a cycle's steps as steps of all cycles."""
    return lambda done, total, detail: report(number * total + done, count * total, f"cycle {number + 1}  {detail}")
