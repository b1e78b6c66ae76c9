"""Pixel episodes on disk: a folder of compressed shards and a manifest with the digest of each."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from forerun.core.atomic_files import write_json_file
from forerun.core.errors import TrajectoryError
from forerun.data.pixel_episodes import PixelEpisodes, joined_episodes

MANIFEST_FILE: Final = "manifest.json"
_FORMAT: Final = "forerun-pixel-episodes"
_ARRAYS: Final = ("pixels", "actions", "states", "lengths", "context")


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelDataset:
    """What a folder holds.

    Attributes:
        episodes: All of them.
        digest: Names the data: a hash of the shards' digests.
        task: Name of the world that they come from; empty if unknown.
        frame_skip: Actions in a block.
        recipe: How they were made, as JSON types.
    """

    episodes: PixelEpisodes
    digest: str
    task: str
    frame_skip: int
    recipe: Mapping[str, Any]


def shard_path(folder: Path, index: int) -> Path:
    """Return where a shard is."""
    return folder / f"shard-{index:05}.npz"


def write_shard(folder: Path, index: int, episodes: PixelEpisodes) -> None:
    """Write a shard; the file appears whole or not at all.

    Raises:
        TrajectoryError: It can't be written.
    """
    path = shard_path(folder, index)
    header = {
        "format": _FORMAT,
        "state_names": episodes.state_names,
        "context_names": episodes.context_names,
        "digest": episodes.digest(),
    }
    arrays: dict[str, np.ndarray] = {name: getattr(episodes, name) for name in _ARRAYS}
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)
        partial.replace(path)
    except OSError as error:
        raise TrajectoryError(
            f"{path}: cannot be written ({error.strerror}); make room and give the same command again"
        ) from error


def read_shard(folder: Path, index: int) -> tuple[PixelEpisodes, str]:
    """Return the episodes of a shard, and their digest.

    Raises:
        TrajectoryError: The file is missing, damaged, or its numbers are not those that were written.
    """
    path = shard_path(folder, index)
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            arrays = {name: file[name] for name in _ARRAYS}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise TrajectoryError(
            f"{path}: is missing or damaged ({error}); delete it and collect again: the other shards are kept"
        ) from error
    episodes = PixelEpisodes(
        **arrays,
        state_names=tuple(header["state_names"]),
        context_names=tuple(header["context_names"]),
        source=str(path),
    )
    if episodes.digest() != header["digest"]:
        raise TrajectoryError(f"{path}: its numbers are not those that were written; delete it and collect again")
    return episodes, header["digest"]


def write_manifest(folder: Path, digests: list[str], *, task: str, frame_skip: int, recipe: Mapping[str, Any]) -> None:
    """Declare a folder complete.

    Args:
        folder: Holds the shards.
        digests: Of each shard, in order.
        task: Name of the world.
        frame_skip: Actions in a block.
        recipe: How they were made, as JSON types.
    """
    write_json_file(
        folder / MANIFEST_FILE,
        {"format": _FORMAT, "task": task, "frame_skip": frame_skip, "recipe": dict(recipe), "shards": digests},
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder.

    Raises:
        TrajectoryError: There is none, or it is not one of ours.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrajectoryError(
            f"{path}: is missing or unreadable ({error}); name a folder that 'forerun world collect' has finished"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise TrajectoryError(f"{path}: is no manifest of pixel episodes; name a folder of 'forerun world collect'")
    return manifest


def read_dataset(folder: Path) -> PixelDataset:
    """Read a whole folder and check every digest.

    Raises:
        TrajectoryError: Something is missing, damaged, or not what the manifest says.
    """
    manifest = read_manifest(folder)
    parts: list[PixelEpisodes] = []
    for index, wanted in enumerate(manifest["shards"]):
        part, digest = read_shard(folder, index)
        if digest != wanted:
            raise TrajectoryError(f"{shard_path(folder, index)}: is of another collection; collect again")
        parts.append(part)
    return PixelDataset(
        episodes=joined_episodes(parts),
        digest=dataset_digest(manifest["shards"]),
        task=manifest["task"],
        frame_skip=manifest["frame_skip"],
        recipe=manifest["recipe"],
    )


def dataset_digest(shard_digests: list[str]) -> str:
    """Return one name for the data of several shards: a SHA-256 over theirs."""
    return hashlib.sha256("\n".join(shard_digests).encode()).hexdigest()
