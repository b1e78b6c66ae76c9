"""A trained world model on disk: safetensors, and a manifest that says all that is needed to use it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from forerun.core.atomic_files import folder_in_the_making, write_json_file
from forerun.core.errors import CheckpointError, ConfigError, TrajectoryError
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.worldmodels.jepa.config import JepaConfig
from forerun.worldmodels.jepa.model import Jepa

MODEL_FILE: Final = "model.safetensors"
MANIFEST_FILE: Final = "manifest.json"
_FORMAT: Final = "forerun-jepa"


def save_model(model: Jepa, folder: Path, *, record: Mapping[str, Any]) -> None:
    """Write a model; the folder appears whole or not at all.

    Args:
        model: What to write.
        folder: Must not exist, or be empty.
        record: More to keep in the manifest, as JSON types: data, seed, versions.
    """
    with folder_in_the_making(folder) as partial:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial / MODEL_FILE)
        manifest = {"format": _FORMAT, "model": model.config.to_json(), "action_dim": model.action_dim}
        write_json_file(partial / MANIFEST_FILE, manifest | dict(record))


def load_model(folder: Path) -> tuple[Jepa, dict[str, Any]]:
    """Return the model of a folder, in evaluation mode, and its manifest.

    Raises:
        CheckpointError: A file is missing or damaged, or does not fit the other.
    """
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise CheckpointError(f"{folder / MANIFEST_FILE}: is of no world model; name a folder of 'world train'")
        model = Jepa(JepaConfig.from_json(manifest["model"]), action_dim=manifest["action_dim"])
        model.load_state_dict(load_file(folder / MODEL_FILE))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        detail = error if isinstance(error, ConfigError) else f"{type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(
            f"{folder}: holds no readable world model ({detail}); name the folder 'model' that 'forerun world train' "
            "wrote"
        ) from error
    return model.eval(), manifest


def check_fits(model: Jepa, episodes: PixelEpisodes) -> None:
    """Refuse episodes that a model can't take.

    Raises:
        TrajectoryError: Frames or blocks of actions are of another size.
    """
    size = model.config.encoder.image_size
    if episodes.image_size != (size, size):
        raise TrajectoryError(
            f"{episodes.source}: frames of {episodes.image_size[0]} x {episodes.image_size[1]} pixels: this model "
            f"takes {size} x {size}; collect with --resolution {size}"
        )
    if episodes.action_dim != model.action_dim:
        raise TrajectoryError(
            f"{episodes.source}: blocks of {episodes.action_dim} action numbers: this model takes {model.action_dim}; "
            "collect with the frame skip that it was trained with"
        )
