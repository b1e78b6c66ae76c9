"""Goal-conditioned behaviour cloning: what was done on the way to a later frame, imitated; a baseline without a model.

From a frame and a goal, both pictures, to the block of actions that a recorded episode took there when the goal was the
frame some blocks later (hindsight). Nothing is planned.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forerun.core.atomic_files import folder_in_the_making, write_json_file
from forerun.core.errors import CheckpointError, ConfigError, TrajectoryError
from forerun.core.generator import keyed_generator
from forerun.data.normalizer import Normalizer
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.data.pixel_shards import PixelDataset
from forerun.nn.first_weights import seeded_weights
from forerun.training.loop import LoopConfig, TrainingLoop
from forerun.worldmodels.jepa.encoder import (
    ENCODERS,
    CnnConfig,
    EncoderConfig,
    build_encoder,
    encoder_kind,
    normalised,
)

_MODEL_FILE: Final = "model.safetensors"
_MANIFEST_FILE: Final = "manifest.json"
_FORMAT: Final = "forerun-cloning"


@dataclass(frozen=True, kw_only=True, slots=True)
class CloningConfig:
    """How a policy is cloned.

    Attributes:
        encoder: Of a frame; start and goal share it. Its image size must be that of the data.
        hidden_width: Of the two layers between the vectors and the block.
        most_blocks_ahead: A goal is drawn evenly from so many later frames of the episode.
        num_steps: Optimiser steps.
        batch_size: Frames of a step.
        learning_rate: Peak.
        held_out_fraction: Share of the episodes that cloning never sees, as for a world model on the same data.
        split_seed: Draws them.
        seed: Root of all other chance.
    """

    encoder: EncoderConfig = field(default_factory=CnnConfig)
    hidden_width: int = 256
    most_blocks_ahead: int = 5
    num_steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-3
    held_out_fraction: float = 0.2
    split_seed: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: An option is out of range.
        """
        for name in ("hidden_width", "most_blocks_ahead", "num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be >= 1")


class ClonedPolicy(nn.Module):
    """From a frame and a goal to a block of actions.

    Args:
        config: Shape.
        action_dim: Numbers of a block.
        action_normalizer: Of blocks; ``None``: no shift, no scale.
    """

    def __init__(self, config: CloningConfig, *, action_dim: int, action_normalizer: Normalizer | None = None) -> None:
        super().__init__()
        self.config, self.action_dim = config, action_dim
        self.encoder = build_encoder(config.encoder)
        self.head = nn.Sequential(
            nn.Linear(2 * self.encoder.width, config.hidden_width),
            nn.GELU(),
            nn.Linear(config.hidden_width, config.hidden_width),
            nn.GELU(),
            nn.Linear(config.hidden_width, action_dim),
        )
        self.action_normalizer = action_normalizer or Normalizer(torch.zeros(action_dim), torch.ones(action_dim))

    def forward(
        self, pixels: UInt8[Tensor, "batch height width 3"], goals: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch A"]:
        """Return blocks in units of the training data."""
        seen, wanted = self.encoder(normalised(torch.cat([pixels, goals]))).chunk(2)
        return self.head(torch.cat([seen, wanted], dim=1))

    @torch.no_grad()
    def act(
        self, pixels: UInt8[Tensor, "batch height width 3"], goals: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch A"]:
        """Return raw blocks, in evaluation mode."""
        return self.action_normalizer.inverse(self.eval()(pixels, goals))


def clone_policy(
    dataset: PixelDataset,
    folder: Path,
    config: CloningConfig,
    *,
    report: Callable[[int, int, str], None] = lambda done, total, detail: None,
) -> dict[str, Any]:
    """Clone a policy from the episodes to learn from, and write it.

    Args:
        dataset: Of the task.
        folder: For the policy; must not exist, or be empty.
        config: How.
        report: Told (steps done, steps, detail).

    Returns:
        ``num_params``, ``final_loss`` (mean of the last tenth of the steps, in units of the blocks' variance).

    Raises:
        TrajectoryError: Frames are not of the encoder's size, or no episode has two frames.
        DivergenceError: The loss is not a number.
    """
    training, _ = dataset.episodes.split(config.held_out_fraction, seed=config.split_seed)
    size = config.encoder.image_size
    if training.image_size != (size, size):
        raise TrajectoryError(f"{training.source}: frames of {training.image_size}: this encoder takes {size} x {size}")
    with seeded_weights(config.seed, "cloning"):
        policy = ClonedPolicy(
            config,
            action_dim=training.action_dim,
            action_normalizer=Normalizer.of_mean_and_std(torch.from_numpy(np.float32(training.taken_actions))),
        )
    batches = _HindsightBatches(training, config)
    losses = TrainingLoop(
        policy.train(),
        LoopConfig(num_steps=config.num_steps, learning_rate=config.learning_rate, weight_decay=1e-3),
        batch_at=batches.at,
        loss=lambda batch: (
            (policy(batch.pixels, batch.goals) - policy.action_normalizer(batch.actions)).square().mean()
        ),
        on_step=lambda step, loss, rate: report(step + 1, config.num_steps, f"loss {loss:.3f}"),
    ).run()
    last = losses[-max(1, len(losses) // 10) :]
    result = {
        "num_params": sum(parameter.numel() for parameter in policy.parameters()),
        "final_loss": sum(last) / len(last),
    }
    with folder_in_the_making(folder) as partial:
        save_file({name: tensor.contiguous() for name, tensor in policy.state_dict().items()}, partial / _MODEL_FILE)
        options = asdict(config)
        options["encoder"]["kind"] = encoder_kind(config.encoder)
        record = {"format": _FORMAT, "config": options, "action_dim": policy.action_dim}
        write_json_file(partial / _MANIFEST_FILE, record | result | {"data_digest": dataset.digest})
    return result


def load_policy(folder: Path) -> ClonedPolicy:
    """Return the policy of a folder, in evaluation mode.

    Raises:
        CheckpointError: A file is missing or damaged, or does not fit the other.
    """
    try:
        manifest = json.loads((folder / _MANIFEST_FILE).read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT:
            raise CheckpointError(f"{folder}: holds no cloned policy; name a folder of 'world clone'")
        options = dict(manifest["config"])
        encoder = {"kind": "cnn"} | options.pop("encoder")  # policies of before have no kind
        config = CloningConfig(encoder=ENCODERS[encoder.pop("kind")](**encoder), **options)
        policy = ClonedPolicy(config, action_dim=manifest["action_dim"])
        policy.load_state_dict(load_file(folder / _MODEL_FILE))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{folder}: holds no readable cloned policy ({type(error).__name__}: {str(error)[:200]}); name a folder of "
            "'forerun world clone'"
        ) from error
    return policy.eval()


@dataclass(frozen=True, kw_only=True, slots=True)
class _HindsightBatch:
    pixels: UInt8[Tensor, "batch height width 3"]
    goals: UInt8[Tensor, "batch height width 3"]
    actions: Float[Tensor, "batch A"]


class _HindsightBatches:
    """Frames with a later frame of their episode as the goal, as a function of the step."""

    def __init__(self, episodes: PixelEpisodes, config: CloningConfig) -> None:
        self._pixels = torch.from_numpy(episodes.pixels)
        self._actions = torch.from_numpy(np.float32(episodes.actions))
        self._starts = torch.from_numpy(episodes.window_rows(2))
        self._last_rows = torch.from_numpy(np.repeat(episodes.last_rows, episodes.lengths))
        self._config = config

    def at(self, step: int) -> _HindsightBatch:
        config = self._config
        generator = keyed_generator(config.seed, "hindsight", step)
        rows = self._starts[torch.randint(len(self._starts), (config.batch_size,), generator=generator)]
        most = (self._last_rows[rows] - rows).clamp(max=config.most_blocks_ahead)
        ahead = 1 + (torch.rand(config.batch_size, generator=generator) * most).long()
        return _HindsightBatch(pixels=self._pixels[rows], goals=self._pixels[rows + ahead], actions=self._actions[rows])
