"""One training run of a world model: from a dataset to a folder with the model, its health and its curve."""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from forerun.core.atomic_files import write_json_file
from forerun.core.env import package_versions
from forerun.core.errors import CheckpointError, CollapseError
from forerun.core.generator import keyed_generator
from forerun.data.normalizer import Normalizer
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.data.pixel_shards import PixelDataset
from forerun.nn.first_weights import seeded_weights
from forerun.training.devices import World
from forerun.training.loop import LoopConfig, TrainingLoop, read_metadata
from forerun.training.schedule import warmup_cosine
from forerun.worldmodels.jepa.checkpoint import check_fits, save_model
from forerun.worldmodels.jepa.config import JepaTrainConfig
from forerun.worldmodels.jepa.health import Health, HealthMonitor
from forerun.worldmodels.jepa.model import Jepa
from forerun.worldmodels.jepa.objective import JepaObjective, LossTerms, WindowBatch

MODEL_FOLDER: Final = "model"
RESULT_FILE: Final = "result.json"
_RUN_FILE: Final = "run.json"
_HEALTH_FILE: Final = "health.json"
_CHECKPOINT_FILE: Final = "checkpoint.safetensors"

Report = Callable[[int, int, str], None]
"""Told (steps done, steps of the run, detail)."""


class WindowBatches:
    """Batches of windows as a function of the step.

    Args:
        episodes: To draw from, every window alike, with replacement.
        history: Actions of a window, which has a frame more.
        batch_size: Windows of a batch.
        seed: Draws.
        device: Where batches go.
    """

    def __init__(
        self,
        episodes: PixelEpisodes,
        *,
        history: int,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._pixels = torch.from_numpy(episodes.pixels)
        self._actions = torch.from_numpy(episodes.actions).float()
        self._starts = torch.from_numpy(episodes.window_rows(history + 1))
        self._history, self._batch_size, self._seed, self._device = history, batch_size, seed, device

    def at(self, step: int) -> WindowBatch:
        """Return the batch of a step."""
        generator = keyed_generator(self._seed, "windows", step)
        picks = torch.randint(len(self._starts), (self._batch_size,), generator=generator)
        rows = self._starts[picks][:, None] + torch.arange(self._history + 1)
        return WindowBatch(
            pixels=self._pixels[rows].to(self._device),
            actions=self._actions[rows[:, :-1]].to(self._device),
            generator=keyed_generator(self._seed, "directions", step),
        )


def train_world(
    dataset: PixelDataset,
    folder: Path,
    config: JepaTrainConfig,
    *,
    stops_on_collapse: bool = True,
    device: torch.device | str = "cpu",
    report: Report = lambda done, total, detail: None,
) -> dict[str, Any]:
    """Train one world model, or go on where a cut run stopped, or return at once if it is done.

    Args:
        dataset: Held-out episodes (``config.held_out_fraction``) serve the health monitor, the others training.
        folder: Of the run: gets ``run.json``, checkpoints, ``health.json`` after every look, ``model/``,
            ``result.json``.
        config: How to train.
        stops_on_collapse: Whether a run whose embeddings collapse ends with an error; a control goes on.
        device: Where to train. First weights, windows and directions are drawn on the CPU: the same for every device.
        report: Progress.

    Returns:
        ``num_steps``, ``num_params``, ``cpu_s_since_start``, ``loss_terms`` of the last step, ``health`` of the last
        look, and ``why_collapsed``, which is ``None`` for a healthy model.

    Raises:
        TrajectoryError: Frames are not of the encoder's size, or episodes shorter than a window.
        CheckpointError: The folder holds another run.
        CollapseError: The embeddings collapse. The last checkpoint and the looks so far are kept.
        DivergenceError: The loss is not a number.
    """
    identity = {"kind": "jepa", "config": asdict(config), "data_digest": dataset.digest}
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, identity)
    result_path = folder / RESULT_FILE
    if result_path.is_file():
        return json.loads(result_path.read_text(encoding="utf-8"))
    started_cpu_s = time.process_time()
    run = _Run(dataset, folder, config, stops_on_collapse=stops_on_collapse, device=torch.device(device), report=report)
    run.train()
    health = run.looks[-1][1]
    record = {
        "task": dataset.task,
        "frame_skip": dataset.frame_skip,
        "data_digest": dataset.digest,
        "train_config": asdict(config),
        "health": health.to_json(),
        "versions": {"python": platform.python_version()} | package_versions(("forerun", "torch", "numpy")),
    }
    save_model(run.model, folder / MODEL_FOLDER, record=record)
    result = {
        "num_steps": config.num_steps,
        "num_params": sum(parameter.numel() for parameter in run.model.parameters()),
        "cpu_s_since_start": time.process_time() - started_cpu_s,
        "loss_terms": run.last_terms,
        "health": health.to_json(),
        "why_collapsed": health.collapse(),
    }
    write_json_file(result_path, result)
    (folder / _CHECKPOINT_FILE).unlink(missing_ok=True)
    return result


def action_units(episodes: PixelEpisodes) -> Normalizer:
    """Return the units in which a model sees actions: mean 0 and standard deviation 1 for each number of a block."""
    return Normalizer.of_mean_and_std(torch.from_numpy(np.float32(episodes.taken_actions)))


def fresh_model(episodes: PixelEpisodes, config: JepaTrainConfig) -> Jepa:
    """Return a model with fresh weights, its actions in units of these episodes.

    Raises:
        TrajectoryError: Frames are not of the encoder's size.
    """
    with seeded_weights(config.seed, "jepa"):
        model = Jepa(
            config.model,
            action_dim=episodes.action_dim,
            action_normalizer=action_units(episodes),
        )
    check_fits(model, episodes)
    return model


class _Run:
    def __init__(
        self,
        dataset: PixelDataset,
        folder: Path,
        config: JepaTrainConfig,
        *,
        stops_on_collapse: bool,
        device: torch.device,
        report: Report,
    ) -> None:
        training, held_out = dataset.episodes.split(config.held_out_fraction, seed=config.split_seed)
        history = config.model.predictor.history
        self._config, self._stops, self._report, self._folder = config, stops_on_collapse, report, folder
        self._device = device
        self.model = fresh_model(training, config).to(device)
        self._batches = WindowBatches(
            training, history=history, batch_size=config.batch_size, seed=config.seed, device=device
        )
        self._monitor = HealthMonitor(training, held_out, history=history)
        self._objective = JepaObjective(self.model, config.objective)
        self.looks: list[tuple[int, Health]] = []
        self.last_terms: dict[str, float] = {}

    def train(self) -> None:
        config = self._config
        num_warmup = max(1, round(config.warmup_fraction * config.num_steps))
        self._load_looks()
        TrainingLoop(
            self.model.train(),
            LoopConfig(
                num_steps=config.num_steps,
                learning_rate=config.learning_rate,
                num_warmup=num_warmup,
                weight_decay=config.weight_decay,
                checkpoint_every=config.checkpoint_every,
                noise_seed=config.seed if config.model.predictor.dropout > 0 else None,
            ),
            batch_at=self._batches.at,
            loss=self._loss,
            directory=self._folder,
            on_step=self._on_step,
            learning_rate_fraction=lambda step: warmup_cosine(
                step, num_steps=config.num_steps, num_warmup=num_warmup, final_fraction=config.final_rate_fraction
            ),
            state=self._state(),
            world=World(device=self._device),
        ).run()

    def _loss(self, batch: WindowBatch) -> Tensor:
        device_type = batch.pixels.device.type
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=self._config.has_autocast):
            terms = self._objective.loss(batch)
        self.last_terms = _floats(terms)
        return terms.total

    def _on_step(self, step: int, loss: float, learning_rate: float) -> None:
        self._objective.after_step()
        done = step + 1
        if done % self._config.monitor_every == 0 or done == self._config.num_steps:
            self._look(done)
        health = self.looks[-1][1].line() if self.looks else ""
        self._report(done, self._config.num_steps, f"loss {loss:.4f}  {health}")

    def _look(self, done: int) -> None:
        health = self._monitor.look(self.model)
        self.looks.append((done, health))
        write_json_file(self._folder / _HEALTH_FILE, [{"step": step} | health.to_json() for step, health in self.looks])
        reason = health.collapse()
        is_rising = len(self.looks) < 2 or health.is_rising(self.looks[-2][1])
        if reason is not None and self._stops and (done == self._config.num_steps or not is_rising):
            raise CollapseError(
                f"step {done}: {reason}; take a larger --lambda than {self._config.objective.weight:g}, or give "
                "--keep-going for a control that is meant to collapse"
            )

    def _load_looks(self) -> None:
        """Take up the looks of a cut run that its checkpoint includes."""
        path, checkpoint = self._folder / _HEALTH_FILE, self._folder / _CHECKPOINT_FILE
        if not checkpoint.is_file() or not path.is_file():
            return
        num_done = len(json.loads(read_metadata(checkpoint)["losses"]))
        for row in json.loads(path.read_text(encoding="utf-8")):
            if row["step"] <= num_done:
                self.looks.append((row["step"], Health.from_json(row)))

    def _state(self) -> dict[str, Tensor]:
        state = {f"model.{name}": tensor for name, tensor in self.model.named_buffers()}
        target = self._objective.target
        if target is not None:
            state |= {f"target.{name}": tensor for name, tensor in target.state_dict().items()}
        return state


def _floats(terms: LossTerms) -> dict[str, float]:
    return {name: float(getattr(terms, name).detach()) for name in ("total", "prediction", "regularizer")}


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Mark a folder as this run's, or find that it is another's; an option newer than a run had its default there."""
    path = folder / _RUN_FILE
    wanted = json.loads(json.dumps(identity))
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if _filled(kept, wanted, {"config": asdict(JepaTrainConfig())}) != wanted:
            raise CheckpointError(
                f"{folder}: holds a run with other settings or data (see {path.name}); name another folder"
            )
    write_json_file(path, wanted)


def _filled(kept: dict[str, Any], wanted: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return a record with those of the wanted keys that it lacks, and that have a default."""
    found = {key: defaults[key] for key in wanted if key in defaults} | kept
    for key, value in kept.items():
        if isinstance(value, dict) and isinstance(wanted.get(key), dict) and isinstance(defaults.get(key), dict):
            found[key] = _filled(value, wanted[key], defaults[key])
    return found
