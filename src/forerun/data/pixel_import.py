"""What importers of users' recordings share: frames thinned out and reduced, actions in blocks, shards.

An importer gives one episode after the other, frame by frame as recorded; here every so-manieth frame is kept, the
actions between two become one block, and the episodes are written as shards.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float, UInt8

from forerun.core.errors import ConfigError, TrajectoryError
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.data.pixel_shards import read_shard, write_manifest, write_shard

_SHARD_EPISODES: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class RawEpisode:
    """One recorded episode.

    Attributes:
        frames: The frames that are kept, in order: number 0, ``frame_skip``, twice that, and so on.
        actions: The action after every frame, kept or not.
        states: Known quantities at the kept frames.
    """

    frames: UInt8[np.ndarray, "kept height width 3"]
    actions: Float[np.ndarray, "rows action"]
    states: Float[np.ndarray, "kept state"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """What of a recording to take, whatever its format.

    Attributes:
        action_key: Column of the action after each frame, [rows, numbers].
        state_keys: Columns of known quantities, [rows, numbers] or [rows].
        frame_skip: Every so-manieth frame is kept; the actions between two are one block.
        resolution: Pixels of a side to average frames down to, a divisor of theirs; ``None`` leaves them.
    """

    action_key: str = "action"
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


def num_kept_frames(num_rows: int, frame_skip: int) -> int:
    """Return how many frames of an episode are kept: as many as have whole blocks between them."""
    return (num_rows - 1) // frame_skip + 1


def claim_new_folder(folder: Path) -> None:
    """Make a folder for an import.

    Raises:
        TrajectoryError: It holds something, or can't be made.
    """
    try:
        if folder.exists() and any(folder.iterdir()):
            raise TrajectoryError(f"{folder}: is not empty; name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrajectoryError(f"{folder}: cannot be made ({error.strerror}); name another folder") from error


def write_imported(
    folder: Path,
    raw: Iterator[RawEpisode],
    config: ImportConfig,
    *,
    num_episodes: int,
    state_names: Sequence[str],
    source: Path,
    report: Callable[[int, int], None],
) -> int:
    """Write episodes as shards and return the number of frames.

    Args:
        folder: Empty.
        raw: The episodes, each longer than ``config.frame_skip``.
        config: How they were taken; the manifest keeps it as their recipe.
        num_episodes: How many.
        state_names: Of the known quantities.
        source: Where they come from.
        report: Told (episodes done, episodes in all).

    Raises:
        TrajectoryError: Frames are of a wrong kind or size, or an action is missing inside an episode.
    """
    digests: list[str] = []
    num_frames = num_done = 0
    while part := list(islice(raw, _SHARD_EPISODES)):
        write_shard(folder, len(digests), _joined(part, config, state_names, str(source)))
        episodes, digest = read_shard(folder, len(digests))
        digests.append(digest)
        num_frames += len(episodes.pixels)
        num_done += len(part)
        report(num_done, num_episodes)
    recipe = {"task": "", "file": source.name} | asdict(config)
    write_manifest(folder, digests, task="", frame_skip=config.frame_skip, recipe=recipe)
    return num_frames


def _joined(part: Sequence[RawEpisode], config: ImportConfig, state_names: Sequence[str], source: str) -> PixelEpisodes:
    actions: list[np.ndarray] = []
    for episode in part:
        num_blocks = len(episode.frames) - 1
        blocks = np.asarray(episode.actions[: num_blocks * config.frame_skip], np.float32).reshape(num_blocks, -1)
        actions.append(np.concatenate([blocks, np.full((1, blocks.shape[1]), np.nan, np.float32)]))
    return PixelEpisodes(
        pixels=np.concatenate([_reduced(episode.frames, config.resolution, source) for episode in part]),
        actions=np.concatenate(actions),
        states=np.concatenate([np.asarray(episode.states, np.float32) for episode in part]),
        lengths=np.array([len(episode.frames) for episode in part], np.int64),
        context=np.zeros((len(part), 0)),
        state_names=tuple(state_names),
        context_names=(),
        source=source,
    )


def _reduced(frames: np.ndarray, size: int | None, source: str) -> np.ndarray:
    """Return frames averaged down over squares of pixels."""
    if size is None or frames.ndim != 4 or frames.dtype != np.uint8:
        return frames
    height, width = frames.shape[1:3]
    if height != width or height % size:
        raise TrajectoryError(
            f"{source}: frames of {height} x {width}: --resolution {size} must divide both sides of square frames; "
            "crop or resize them first"
        )
    factor = height // size
    squares = frames.reshape(len(frames), size, factor, size, factor, frames.shape[-1])
    return np.rint(squares.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
