"""One pre-training run: from a prepared corpus to a folder with a model, its loss curves and a manifest."""

import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from torch.nn.functional import cross_entropy, log_softmax

from forerun.core.atomic_files import folder_in_the_making, write_json_file
from forerun.core.env import package_versions
from forerun.core.errors import ConfigError, DivergenceError, TrainingError
from forerun.core.memory import keep_freed_memory
from forerun.models.decoder import Decoder
from forerun.models.export import save_huggingface
from forerun.models.fused_training import can_fuse, fused_next_token_loss
from forerun.models.load import MODEL_FOLDER
from forerun.pretraining.batches import EpochBatches
from forerun.pretraining.config import PretrainConfig
from forerun.pretraining.evaluation import HeldOutLoss, held_out_losses
from forerun.pretraining.initialisation import fresh_decoder, num_params
from forerun.pretraining.prepared_corpus import PreparedCorpus
from forerun.pretraining.run_store import Run, open_run
from forerun.training.devices import World, join_world, share_parameters, whole
from forerun.training.loop import LoopConfig, TrainingLoop
from forerun.training.schedule import warmup_cosine, warmup_stable_decay
from forerun.training.trackers import Tracker, open_trackers

_TUNE_FILE: Final = "tune_losses.json"
_CURVE_FILE: Final = "train_losses.json"
_CHECKPOINT_FILE: Final = "checkpoint.safetensors"

Report = Callable[[int, int, str], None]
"""Told (steps done, steps of the run, detail)."""

Batch = TypeVar("Batch")
Batch_co = TypeVar("Batch_co", covariant=True)


class Batches(Protocol[Batch_co]):
    """Batches as a function of the step."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass over the corpus."""
        ...

    def at(self, step: int) -> Batch_co:
        """Return the batch of a step."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Task(Generic[Batch]):
    """What a run learns.

    Attributes:
        batches: What it sees at which step.
        loss: A decoder in training and a batch to the scalar to minimise.
        start: Where training begins, given away; ``None`` for fresh weights by the config's seed.
    """

    batches: Batches[Batch]
    loss: Callable[[Decoder, Batch], torch.Tensor]
    start: Decoder | None = None


def next_token_loss(decoder: Decoder, ids_BT: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of every id of a row but the first, in nats."""
    if can_fuse(decoder, num_tokens=ids_BT.shape[1] - 1):
        return fused_next_token_loss(decoder, ids_BT)
    return cross_entropy(decoder(ids_BT[:, :-1]).flatten(0, 1), ids_BT[:, 1:].flatten())


def pretrain(
    corpus: PreparedCorpus, store: Path, config: PretrainConfig, *, report: Report = lambda done, total, detail: None
) -> Run:
    """Train one model on the text alone; for what that reads, writes and raises see :func:`train_run`."""
    identity = pretrain_identity(corpus.manifest.data_sha256, config)

    def task(batches: EpochBatches) -> Task[torch.Tensor]:
        return Task(batches=batches, loss=next_token_loss)

    return train_run(corpus, store, config, identity=identity, task=task, report=report)


def pretrain_identity(data_sha256: str, config: PretrainConfig) -> dict[str, Any]:
    """Return what names the run of a config on a corpus."""
    return {"kind": "pretrain", "config": config.identity(), "data_sha256": data_sha256}


def train_run(
    corpus: PreparedCorpus,
    store: Path,
    config: PretrainConfig,
    *,
    identity: Mapping[str, Any],
    task: Callable[[EpochBatches], Task[Any]],
    report: Report = lambda done, total, detail: None,
) -> Run:
    """Train one model to whatever end, or go on where a cut run stopped, or return the run at once if it is done.

    Args:
        corpus: What to learn from and to tune on.
        store: Folder of all runs; this one gets a folder in it, named by the hash of ``identity``.
        config: How to train.
        identity: Everything that decides the outcome; holds ``config`` and ``data_sha256``.
        task: Gives what to learn, from the batches of the text; called only if there is something left to train.
        report: Progress.

    Returns:
        The finished run.

    Raises:
        ConfigError: The corpus is too small for the batch or for ``unique_tokens``.
        CheckpointError: Another process makes the same run, or its folder is damaged.
        TrainingError: The loss is no number (:class:`DivergenceError`), or the disk is full. The last checkpoint is
            kept.

    Effects:
        Writes ``run.json``, then checkpoints and the tune loss of each epoch, then ``model/``, the loss of each step
        and ``result.json``; the checkpoint is deleted at the end.
    """
    world = _world(config, kind=identity["kind"])
    batches = _batches(corpus, config)
    try:
        if not world.is_writer:
            world.wait()
        run = open_run(store, identity)
        if world.is_writer:
            world.wait()
        if run.result() is None:
            with run.held() if world.is_writer else nullcontext():
                if run.result() is None:  # nobody finished it meanwhile
                    _train(corpus, task(batches), run, config, world, report=report)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{store}: cannot be written ({error}); make room and give the same command again: it goes on from the "
            "last checkpoint"
        ) from error
    return run


def _world(config: PretrainConfig, *, kind: str) -> World:
    """Return the processes and devices of a run; a student is made in one process on the CPU, where its teachers are.

    Raises:
        ConfigError: The run can't be shared by so many processes.
    """
    world = join_world()
    if world.size == 1:
        return world if kind == "pretrain" else World(device=torch.device("cpu"))
    if kind != "pretrain":
        raise ConfigError(f"{world.size} processes for a run of the kind {kind!r}: start it without torchrun")
    for name, usual in (("optimizer", "adamw"), ("dropout", 0.0), ("average_decay", 0.0)):
        if getattr(config, name) != usual:
            raise ConfigError(
                f"{name}={getattr(config, name)!r} with {world.size} processes: only {usual!r} is known to several; "
                "take it, or train in one process"
            )
    if config.batch_sequences % world.size:
        raise ConfigError(
            f"batch_sequences={config.batch_sequences}: must be a multiple of the {world.size} processes that share it"
        )
    return world


def _batches(corpus: PreparedCorpus, config: PretrainConfig) -> EpochBatches:
    stream = corpus.train
    if config.unique_tokens is not None:
        if config.unique_tokens > len(stream.ids):
            raise ConfigError(
                f"unique_tokens={config.unique_tokens}: the training split has {len(stream.ids)}; ask for that or fewer"
            )
        stream = stream.prefix(config.unique_tokens)
    return EpochBatches(
        stream,
        sequence_tokens=config.sequence_tokens,
        batch_sequences=config.batch_sequences,
        seed=config.seed,
    )


def _train(
    corpus: PreparedCorpus,
    task: Task[Any],
    run: Run,
    config: PretrainConfig,
    world: World,
    *,
    report: Report,
) -> None:
    started_at, started_cpu_s = datetime.now(UTC).isoformat(timespec="seconds"), time.process_time()
    keep_freed_memory()
    decoder = task.start or fresh_decoder(
        config.shape, vocab_size=corpus.manifest.vocab_size, max_len=config.sequence_tokens, seed=config.seed
    )
    decoder.to(world.device)
    decoder.set_dropout(config.dropout)
    decoder.recomputes = config.gradient_checkpointing
    if world.size > 1:
        share_parameters(decoder, decoder.layers, dtype=getattr(torch, config.precision))
    batches = task.batches
    num_steps = config.num_epochs * batches.steps_per_epoch
    num_warmup = math.ceil(config.warmup_fraction * num_steps)
    tune_losses = _TuneLosses(run.folder / _TUNE_FILE, writes=world.is_writer)

    def batch_at(step: int) -> Any:
        batch = batches.at(step)
        return world.rows(batch) if isinstance(batch, torch.Tensor) else batch

    trackers: list[Tracker] = []

    def on_step(step: int, step_loss: float, learning_rate: float) -> None:
        values = {"train/loss_nats": step_loss, "train/learning_rate": learning_rate}
        epoch, rest = divmod(step + 1, batches.steps_per_epoch)
        if rest == 0 and (epoch % config.tune_every_epochs == 0 or epoch == config.num_epochs):
            with loop.averaged():
                loss = tune_loss(decoder, corpus, config)
            tune_losses.add(epoch, loss)
            values |= {"tune/loss_nats": loss.loss_nats, "tune/bits_per_byte": loss.bits_per_byte}
        for tracker in trackers:
            tracker.add(values, step + 1)
        detail = f"loss {step_loss:.3f}  tune {tune_losses.latest()}  lr {learning_rate:.1e}"
        if world.is_writer:
            report(step + 1, num_steps, detail)

    def learning_rate_fraction(step: int) -> float:
        if config.schedule == "wsd":
            return warmup_stable_decay(
                step, num_steps=num_steps, num_warmup=num_warmup, decay_fraction=config.decay_fraction
            )
        return warmup_cosine(step, num_steps=num_steps, num_warmup=num_warmup, final_fraction=0.0)

    loop = TrainingLoop(
        decoder,
        LoopConfig(
            num_steps=num_steps,
            learning_rate=config.learning_rate,
            num_warmup=num_warmup,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            checkpoint_every=config.checkpoint_every,
            optimizer=config.optimizer,
            average_decay=config.average_decay,
            noise_seed=config.seed if config.dropout > 0 else None,
            precision=config.precision,
        ),
        batch_at=batch_at,
        loss=lambda batch: task.loss(decoder, batch),
        directory=run.folder,
        on_step=on_step,
        learning_rate_fraction=learning_rate_fraction,
        world=world,
    )
    if world.is_writer:
        trackers += open_trackers(run.folder, run.identity, first_step=loop.num_done() + 1)
    try:
        losses = loop.run()
    finally:
        for tracker in trackers:
            tracker.close()
    trained = _gathered(decoder)
    if not world.is_writer:
        world.wait()
        return
    _write_model(trained, corpus, run.folder / MODEL_FOLDER)
    write_json_file(run.folder / _CURVE_FILE, losses)
    run.finish(
        {
            "tune": tune_losses.by_epoch[str(config.num_epochs)],
            "tune_loss_nats_by_epoch": {epoch: loss["loss_nats"] for epoch, loss in tune_losses.by_epoch.items()},
            "final_train_loss_nats": sum(losses[-batches.steps_per_epoch :]) / batches.steps_per_epoch,
            "num_params": num_params(trained),
            "num_steps": num_steps,
            "unique_tokens": config.unique_tokens or len(corpus.train.ids),
            "decay_timescale_epochs": _decay_timescale(config, batches.steps_per_epoch),
            "vocab_digest": corpus.manifest.vocab_digest,
            "device": world.device.type,
            "num_processes": world.size,
            "versions": {"python": platform.python_version()}
            | package_versions(("forerun", "torch", "numpy", "tokenizers")),
            "started_at": started_at,
            "cpu_s_since_start": time.process_time() - started_cpu_s,
            "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    (run.folder / _CHECKPOINT_FILE).unlink(missing_ok=True)
    world.wait()


def tune_loss(decoder: Decoder, corpus: PreparedCorpus, config: PretrainConfig) -> HeldOutLoss:
    """Return a decoder's loss on the part of the tune split that ``config`` names, without dropout."""
    stream, num_bytes = corpus.tune_part(config.tune_tokens)
    was_training = decoder.training
    decoder.eval()
    [loss] = held_out_losses(
        lambda ids_BT: [log_softmax(decoder(ids_BT.to(decoder.embed_tokens.weight.device)), dim=-1).cpu()],
        stream,
        num_bytes=num_bytes,
        sequence_tokens=config.sequence_tokens,
    )
    decoder.train(was_training)
    return loss


def _decay_timescale(config: PretrainConfig, steps_per_epoch: int) -> float | None:
    """Return 1 / (learning rate x decay) in epochs, or ``None`` without decay (arXiv 2405.13698)."""
    rate = config.learning_rate * config.weight_decay
    return 1 / (rate * steps_per_epoch) if rate > 0 else None


def _gathered(decoder: Decoder) -> Decoder:
    """Return a decoder with its weights whole and on the CPU; every process must ask."""
    weights = {name: whole(parameter.detach()).cpu() for name, parameter in decoder.named_parameters()}
    gathered = Decoder(decoder.config)
    with torch.no_grad():
        for name, parameter in gathered.named_parameters():
            parameter.copy_(weights[name])
    return gathered


def _write_model(decoder: Decoder, corpus: PreparedCorpus, folder: Path) -> None:
    if folder.exists():  # a run cut between here and its result
        shutil.rmtree(folder)
    with folder_in_the_making(folder) as partial:
        save_huggingface(decoder, partial, tokenizer=corpus.tokenizer)


class _TuneLosses:
    """Tune losses by epoch, kept on disk ahead of the checkpoint that counts the epoch as done."""

    def __init__(self, path: Path, *, writes: bool) -> None:
        self._path, self._writes = path, writes
        self.by_epoch: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def add(self, epoch: int, loss: HeldOutLoss) -> None:
        if not math.isfinite(loss.loss_nats):
            raise DivergenceError(
                f"the tune loss after epoch {epoch} is {loss.loss_nats}: training went out of bounds; take a lower "
                "learning rate"
            )
        self.by_epoch[str(epoch)] = asdict(loss)
        if self._writes:
            write_json_file(self._path, self.by_epoch)

    def latest(self) -> str:
        return f"{list(self.by_epoch.values())[-1]['loss_nats']:.3f}" if self.by_epoch else "-"
