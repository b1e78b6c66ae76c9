"""Users' own recordings: an HDF5 file with one row for each frame becomes a folder of shards."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError, TrajectoryError
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.data.pixel_shards import read_shard, write_manifest, write_shard

_SHARD_EPISODES: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Hdf5Config:
    """What a file holds, and what to make of it.

    Attributes:
        pixels_key: Dataset of the frames, uint8 [rows, height, width, 3].
        action_key: Dataset of the action after each frame, [rows, numbers].
        length_key: Dataset of the number of rows of each episode; episodes lie one after the other.
        state_keys: Datasets of known quantities, [rows, numbers] or [rows].
        frame_skip: Every so-manieth frame is kept; the actions between two are one block.
        resolution: Pixels of a side to average frames down to, a divisor of theirs; ``None`` leaves them.
    """

    pixels_key: str = "pixels"
    action_key: str = "action"
    length_key: str = "ep_len"
    state_keys: tuple[str, ...] = ()
    frame_skip: int = 5
    resolution: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: An option is out of range.
        """
        if self.frame_skip < 1:
            raise ConfigError(f"frame_skip={self.frame_skip}: must be >= 1; 1 keeps every frame")


def import_hdf5(
    path: Path, folder: Path, config: Hdf5Config, *, report: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, int]:
    """Write the episodes of a file as shards.

    Args:
        path: The file.
        folder: For the shards; must not exist or be empty.
        config: What the file holds.
        report: Told (episodes done, episodes in all).

    Returns:
        ``num_episodes``, ``num_frames`` and ``num_dropped``, episodes too short for one block of actions.

    Raises:
        MissingDependencyError: h5py is not installed.
        TrajectoryError: The file can't be read, a dataset is missing or of a wrong shape or kind, or the folder is not
            empty.
    """
    h5py = import_optional("h5py", extra="worlds", purpose="reading HDF5")
    if folder.exists() and any(folder.iterdir()):
        raise TrajectoryError(f"{folder}: is not empty; name a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "r") as file:
            return _imported(file, path, folder, config, report)
    except OSError as error:
        raise TrajectoryError(f"{path}: can't be read as HDF5 ({error}); name an .h5 file") from error


def _imported(
    file: Any, path: Path, folder: Path, config: Hdf5Config, report: Callable[[int, int], None]
) -> dict[str, int]:
    sources = {key: _dataset(file, path, key) for key in _keys(config)}
    lengths = np.asarray(sources[config.length_key][:], np.int64)
    for key, source in sources.items():
        if key != config.length_key and len(source) != lengths.sum():
            raise TrajectoryError(
                f"{path}: {key!r} has {len(source)} rows, {config.length_key!r} counts {lengths.sum()}: must be equal"
            )
    keepable = np.flatnonzero(lengths > config.frame_skip)
    if not len(keepable):
        raise TrajectoryError(f"{path}: no episode is longer than frame_skip={config.frame_skip}; take a smaller one")
    ends = np.cumsum(lengths)
    digests: list[str] = []
    num_frames = 0
    for index, first in enumerate(range(0, len(keepable), _SHARD_EPISODES)):
        chosen = keepable[first : first + _SHARD_EPISODES]
        write_shard(folder, index, _episodes(sources, path, config, ends[chosen] - lengths[chosen], ends[chosen]))
        episodes, digest = read_shard(folder, index)
        digests.append(digest)
        num_frames += len(episodes.pixels)
        report(first + len(chosen), len(keepable))
    recipe = {"task": "", "file": path.name} | asdict(config)
    write_manifest(folder, digests, task="", frame_skip=config.frame_skip, recipe=recipe)
    return {
        "num_episodes": len(keepable),
        "num_frames": num_frames,
        "num_dropped": len(lengths) - len(keepable),
    }


def _keys(config: Hdf5Config) -> tuple[str, ...]:
    return (config.pixels_key, config.action_key, config.length_key, *config.state_keys)


def _dataset(file: Any, path: Path, key: str) -> Any:
    if key not in file:
        raise TrajectoryError(f"{path}: has no dataset {key!r}; it has {sorted(file)}; say which is which")
    return file[key]


def _episodes(sources: dict[str, Any], path: Path, config: Hdf5Config, starts: Any, ends: Any) -> PixelEpisodes:
    pixels, actions, states, lengths = [], [], [], []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        rows = slice(start, end, config.frame_skip)
        num_blocks = (end - start - 1) // config.frame_skip
        kept = num_blocks + 1
        pixels.append(_reduced(np.asarray(sources[config.pixels_key][rows])[:kept], path, config))
        raw = np.asarray(sources[config.action_key][start : start + num_blocks * config.frame_skip], np.float32)
        blocks = raw.reshape(num_blocks, -1)
        actions.append(np.concatenate([blocks, np.full((1, blocks.shape[1]), np.nan, np.float32)]))
        columns = [np.asarray(sources[key][rows], np.float32)[:kept].reshape(kept, -1) for key in config.state_keys]
        states.append(np.concatenate(columns, axis=1) if columns else np.zeros((kept, 0), np.float32))
        lengths.append(kept)
    widths = [np.prod(sources[key].shape[1:], dtype=int) for key in config.state_keys]
    return PixelEpisodes(
        pixels=np.concatenate(pixels),
        actions=np.concatenate(actions),
        states=np.concatenate(states),
        lengths=np.array(lengths, np.int64),
        context=np.zeros((len(lengths), 0)),
        state_names=tuple(
            f"{key}[{number}]" for key, width in zip(config.state_keys, widths, strict=True) for number in range(width)
        ),
        context_names=(),
        source=str(path),
    )


def _reduced(frames: np.ndarray, path: Path, config: Hdf5Config) -> np.ndarray:
    """Return frames averaged down over squares of pixels."""
    size = config.resolution
    if size is None or frames.ndim != 4 or frames.dtype != np.uint8:
        return frames
    height, width = frames.shape[1:3]
    if height != width or height % size:
        raise TrajectoryError(
            f"{path}: frames of {height} x {width}: --resolution {size} must divide both sides of square frames; crop "
            "or resize them first"
        )
    factor = height // size
    squares = frames.reshape(len(frames), size, factor, size, factor, frames.shape[-1])
    return np.rint(squares.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
