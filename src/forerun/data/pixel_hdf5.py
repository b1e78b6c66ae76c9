"""Users' own recordings: an HDF5 file with one row for each frame becomes a folder of shards."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forerun.core.dependencies import import_optional
from forerun.core.errors import TrajectoryError
from forerun.data.pixel_import import ImportConfig, RawEpisode, claim_new_folder, num_kept_frames, write_imported


@dataclass(frozen=True, kw_only=True, slots=True)
class Hdf5Config(ImportConfig):
    """What a file holds, and what to make of it; columns are its datasets.

    Attributes:
        pixels_key: Dataset of the frames, uint8 [rows, height, width, 3].
        length_key: Dataset of the number of rows of each episode; episodes lie one after the other.
    """

    pixels_key: str = "pixels"
    length_key: str = "ep_len"


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
    claim_new_folder(folder)
    try:
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
    widths = [np.prod(sources[key].shape[1:], dtype=int) for key in config.state_keys]
    names = [f"{key}[{place}]" for key, width in zip(config.state_keys, widths, strict=True) for place in range(width)]
    num_frames = write_imported(
        folder,
        _episodes(sources, config, ends[keepable] - lengths[keepable], ends[keepable]),
        config,
        num_episodes=len(keepable),
        state_names=names,
        source=path,
        report=report,
    )
    return {"num_episodes": len(keepable), "num_frames": num_frames, "num_dropped": len(lengths) - len(keepable)}


def _keys(config: Hdf5Config) -> tuple[str, ...]:
    return (config.pixels_key, config.action_key, config.length_key, *config.state_keys)


def _dataset(file: Any, path: Path, key: str) -> Any:
    if key not in file:
        raise TrajectoryError(f"{path}: has no dataset {key!r}; it has {sorted(file)}; say which is which")
    return file[key]


def _episodes(sources: dict[str, Any], config: Hdf5Config, starts: Any, ends: Any) -> Iterator[RawEpisode]:
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        rows, num_kept = slice(start, end, config.frame_skip), num_kept_frames(end - start, config.frame_skip)
        columns = [
            np.asarray(sources[key][rows], np.float32)[:num_kept].reshape(num_kept, -1) for key in config.state_keys
        ]
        yield RawEpisode(
            frames=np.asarray(sources[config.pixels_key][rows])[:num_kept],
            actions=np.asarray(sources[config.action_key][start:end], np.float32),
            states=np.concatenate(columns, axis=1) if columns else np.zeros((num_kept, 0), np.float32),
        )
