"""Train a draft for a target, from nothing but the target: sample, distil, measure, write."""

import math
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from forerun.core.errors import ConfigError
from forerun.models.checkpoint import Checkpoint
from forerun.models.draft import Draft, load_draft
from forerun.models.eagle3_file import usual_layers
from forerun.training.distillation.batches import RoundConfig, TextBatches
from forerun.training.distillation.corpus import (
    CorpusConfig,
    corpus_digest,
    make_runner,
    read_shard,
    sample_shard,
    shard_path,
    write_shard,
)
from forerun.training.distillation.eagle3 import Eagle3Student, eagle3_trainee
from forerun.training.distillation.layers import layers_trainee
from forerun.training.distillation.sampling import Kept, SampledText
from forerun.training.distillation.student import Student
from forerun.training.distillation.vocabulary import choose_vocab
from forerun.training.loop import LoopConfig, TrainingLoop

DraftKind = Literal["layers", "eagle3"]
"""A draft made of layers of the target, or an EAGLE-3 head."""
_HELD_OUT_SHARDS = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftTrainingConfig:
    """How to train a draft.

    Attributes:
        kind: What is trained.
        corpus: What text to sample.
        num_shards: Shards to sample; the last is held out.
        layer_ids: Layers of the target that the draft starts from, and whose keys and values it reads; ``None``: four,
            as :func:`evenly_spaced`. Of an EAGLE-3 head those whose inputs it reads; ``None``: the usual three.
        init_from: A distilled draft of the same layers to start from instead, as
            :func:`forerun.models.draft.load_draft` takes it.
        rounds: How texts are cut into rounds.
        num_runs: Of an EAGLE-3 head: longest draft that is trained.
        vocab_size: Tokens the draft can propose.
        num_steps: Optimiser steps.
        batch_tokens: Tokens per step, padding included.
        learning_rate: Peak.
        greedy_share: Weight of the target's likeliest token in the loss, against its whole law.
    """

    kind: DraftKind = "layers"
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    num_shards: int = 25
    layer_ids: tuple[int, ...] | None = None
    init_from: str | None = None
    rounds: RoundConfig = field(default_factory=RoundConfig)
    num_runs: int = 4
    vocab_size: int = 8192
    num_steps: int = 2000
    batch_tokens: int = 1024
    learning_rate: float = 1e-3
    greedy_share: float = 0.3

    def __post_init__(self) -> None:
        if self.num_shards <= _HELD_OUT_SHARDS:
            raise ConfigError(
                f"num_shards={self.num_shards}: must be at least {_HELD_OUT_SHARDS + 1}, the last is held out"
            )
        if not 0 <= self.greedy_share <= 1:
            raise ConfigError(f"greedy_share={self.greedy_share}: must be in [0, 1]")
        if self.num_runs < 1:
            raise ConfigError(f"num_runs={self.num_runs}: must be at least 1, the first token of a draft")
        if self.kind == "eagle3" and self.init_from is not None:
            raise ConfigError(
                f'init_from={self.init_from!r}: an EAGLE-3 head begins anew; leave it out, or kind="layers"'
            )

    def source_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the layers of a target of so many that the draft is concerned with."""
        if self.layer_ids is not None:
            return self.layer_ids
        if self.kind == "eagle3":
            return usual_layers(num_layers) or evenly_spaced(num_layers, count=3)
        return evenly_spaced(num_layers, count=4)


Report = Callable[[str, int, int, str], None]
"""Told (stage, done, total, detail) as training goes on."""


def train_draft(
    checkpoint: Checkpoint, directory: Path, config: DraftTrainingConfig, *, report: Report
) -> dict[str, Any]:
    """Train a draft; call it again with the same directory to resume.

    Args:
        checkpoint: The target.
        directory: Gets the draft, and below ``work`` the sampled text and the checkpoint.
        config: How to train.
        report: Progress.

    Returns:
        The manifest that was written beside the draft.

    Effects:
        Writes ``draft.safetensors`` and ``draft.json`` at the end, each whole or not at all; of an EAGLE-3 head its
        published format, and ``training.json``.
    """
    work = directory / "work"
    layer_ids = config.source_layers(checkpoint.config.num_layers)
    initial = None if config.init_from is None else _initial_draft(config.init_from, checkpoint, layer_ids)
    sample_corpus(checkpoint, work / "corpus", config, report=report)
    texts = _read(work / "corpus", range(config.num_shards - _HELD_OUT_SHARDS))
    held_out = _read(work / "corpus", range(config.num_shards - _HELD_OUT_SHARDS, config.num_shards))
    vocab_ids = choose_vocab(
        texts, size=config.vocab_size, vocab_size=checkpoint.config.vocab_size, always=checkpoint.eos_ids
    )
    is_of_kind = texts[0].states.ndim == (3 if config.kind == "eagle3" else 5)
    if not is_of_kind:
        raise ConfigError(f"{work}: holds text sampled for a draft of another kind; choose another directory")
    batches = TextBatches(
        texts,
        vocab_ids=vocab_ids,
        vocab_size=checkpoint.config.vocab_size,
        batch_tokens=config.batch_tokens,
        rounds=config.rounds,
        seed=config.corpus.seed,
    )
    if config.kind == "eagle3":
        trainee = eagle3_trainee(
            Eagle3Student(
                checkpoint, layer_ids=layer_ids, vocab_ids=vocab_ids, num_runs=config.num_runs, seed=config.corpus.seed
            ),
            batches,
            greedy_share=config.greedy_share,
        )
    else:
        weights = None if initial is None else initial.tensor
        trainee = layers_trainee(
            Student(checkpoint, layer_ids=layer_ids, vocab_ids=vocab_ids, initial=weights),
            batches,
            greedy_share=config.greedy_share,
        )

    def on_step(step: int, loss: float, learning_rate: float) -> None:
        report("train", step + 1, config.num_steps, f"loss {loss:.3f}  lr {learning_rate:.1e}")

    loop = TrainingLoop(
        trainee.module,
        LoopConfig(num_steps=config.num_steps, learning_rate=config.learning_rate),
        batch_at=trainee.batch_at,
        loss=trainee.loss,
        directory=work,
        on_step=on_step,
    )
    losses = loop.run()
    measured = trainee.measure(held_out)
    report("measure", 1, 1, f"greedy agreement on held-out text {measured['held_out_greedy_agreement']:.3f}")
    manifest = {
        "target": checkpoint.source,
        "vocab_digest": checkpoint.tokenizer.vocab_digest(),
        "hidden_size": checkpoint.config.hidden_size,
        "layer_ids": list(layer_ids),
        "initial_draft": None if initial is None else initial.manifest,
        "config": asdict(config),
        "corpus_sha256": corpus_digest(work / "corpus", range(config.num_shards)),
        "num_texts": len(texts),
        "num_sampled_tokens": sum(len(text.tokens) for text in texts),
        "first_loss_nats": float(np.mean(losses[:20])),
        "final_loss_nats": float(np.mean(losses[-20:])),
        "git_revision": _git_revision(),
        "versions": {name: version(name) for name in ("torch", "numpy", "numba")},
    } | measured
    trainee.write(directory, manifest)
    return manifest


def evenly_spaced(num_layers: int, *, count: int) -> tuple[int, ...]:
    """Return ``count`` layers at even distances, rounded up, from the first to the last; all if there are fewer."""
    if num_layers <= count:
        return tuple(range(num_layers))
    return tuple(math.ceil(index * (num_layers - 1) / (count - 1)) for index in range(count))


def sample_corpus(
    checkpoint: Checkpoint,
    directory: Path,
    config: DraftTrainingConfig,
    *,
    report: Report,
    worker: int = 0,
    num_workers: int = 1,
) -> None:
    """Sample the shards that are missing; several workers share them by index."""
    directory.mkdir(parents=True, exist_ok=True)
    mine = range(worker, config.num_shards, num_workers)
    missing = [index for index in mine if not shard_path(directory, index).exists()]
    if not missing:
        return
    runner = make_runner(checkpoint, config.corpus)
    layer_ids = config.source_layers(checkpoint.config.num_layers)
    keeps: Kept = "hidden states" if config.kind == "eagle3" else "keys and values"
    for index in missing:
        texts = sample_shard(checkpoint, runner, config.corpus, index, layer_ids=layer_ids, keeps=keeps)
        write_shard(shard_path(directory, index), texts)
        report(
            "sample", index + 1, config.num_shards, f"{sum(len(text.tokens) for text in texts)} tokens in this shard"
        )


def _read(directory: Path, indices: range) -> list[SampledText]:
    return [text for index in indices for text in read_shard(shard_path(directory, index))]


def _initial_draft(name: str, target: Checkpoint, layer_ids: tuple[int, ...]) -> Draft:
    draft = load_draft(name, target)
    if tuple(draft.manifest.get("layer_ids", ())) != layer_ids:
        raise ConfigError(
            f"init_from={name}: is not a distilled draft of the layers {layer_ids}; name those of the draft, or train "
            "from the target's"
        )
    return draft


def _git_revision() -> str:
    """Return the revision of the working tree's repository, or ``unknown`` outside one."""
    result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
