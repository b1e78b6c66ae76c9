"""Users' own recordings in the layout of LeRobot, a video and a Parquet file for each episode, become shards.

The layout is that of its data sets of version 2: ``meta/info.json`` says where the files of an episode are, Parquet has
a row for each frame, videos have the frames of one camera.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from forerun.core.dependencies import import_optional
from forerun.core.errors import TrajectoryError
from forerun.data.columnar import read_parquet_columns
from forerun.data.pixel_import import ImportConfig, RawEpisode, claim_new_folder, num_kept_frames, write_imported

INFO_FILE: Final = "meta/info.json"
_NEEDED: Final = ("codebase_version", "total_episodes", "data_path", "video_path", "features")


@dataclass(frozen=True, kw_only=True, slots=True)
class LeRobotConfig(ImportConfig):
    """What of a data set to take; columns are those of its Parquet files.

    Attributes:
        camera: Feature whose videos are the frames; ``None``: the only one there is.
    """

    camera: str | None = None


def import_lerobot(
    source: Path,
    folder: Path,
    config: LeRobotConfig,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write the episodes of a data set as shards.

    Args:
        source: Folder that holds ``meta``, ``data`` and ``videos``.
        folder: For the shards; must not exist or be empty.
        config: What to take.
        report: Told (episodes done, episodes in all).

    Returns:
        ``num_episodes``, ``num_frames`` and ``num_dropped``, episodes too short for one block of actions.

    Raises:
        MissingDependencyError: PyAV or pyarrow is not installed.
        TrajectoryError: ``info.json`` is not of version 2, a file or column is missing or damaged, a video has fewer
            frames than its episode has rows, or the folder is not empty.
        CorpusError: A Parquet file is damaged.
    """
    import_optional("av", extra="worlds", purpose="reading videos")
    reader = _Reader(source, config)
    claim_new_folder(folder)
    num_frames = write_imported(
        folder,
        reader.episodes(),
        config,
        num_episodes=reader.num_episodes,
        state_names=reader.state_names,
        source=source,
        report=report,
    )
    return {
        "num_episodes": reader.num_episodes - reader.num_dropped,
        "num_frames": num_frames,
        "num_dropped": reader.num_dropped,
    }


class _Reader:
    def __init__(self, source: Path, config: LeRobotConfig) -> None:
        self._source, self._config = source, config
        self._info = _read_info(source)
        self.num_episodes = int(self._info["total_episodes"])
        self.num_dropped = 0
        features: Mapping[str, Any] = self._info["features"]
        for key in (config.action_key, *config.state_keys):
            if key not in features:
                raise TrajectoryError(
                    f"{source}: has no feature {key!r}; it has {sorted(features)}; say which is which"
                )
        self._camera = _camera_of(source, features, config.camera)
        self.state_names = [
            f"{key}[{place}]"
            for key in config.state_keys
            for place in range(int(np.prod(features[key].get("shape", ()))))
        ]

    def episodes(self) -> Iterator[RawEpisode]:
        """Yield the episodes that are long enough, and count the others."""
        for number in range(self.num_episodes):
            rows = read_parquet_columns(self._path("data_path", number), extra="worlds")
            actions = self._column(rows, self._config.action_key, number)
            if len(actions) <= self._config.frame_skip:
                self.num_dropped += 1
                continue
            num_kept = num_kept_frames(len(actions), self._config.frame_skip)
            columns = [
                self._column(rows, key, number)[:: self._config.frame_skip][:num_kept]
                for key in self._config.state_keys
            ]
            yield RawEpisode(
                frames=_kept_frames(
                    self._path("video_path", number), frame_skip=self._config.frame_skip, num_kept=num_kept
                ),
                actions=actions,
                states=np.concatenate(columns, axis=1) if columns else np.zeros((num_kept, 0), np.float32),
            )
        if self.num_dropped == self.num_episodes:
            raise TrajectoryError(
                f"{self._source}: no episode is longer than frame_skip={self._config.frame_skip}; take a smaller one"
            )

    def _column(self, rows: Mapping[str, np.ndarray], key: str, number: int) -> np.ndarray:
        if key not in rows or rows[key].dtype == object:
            raise TrajectoryError(f"{self._source}: episode {number} has no column {key!r} of numbers; name another")
        return np.asarray(rows[key], np.float32).reshape(len(rows[key]), -1)

    def _path(self, key: str, number: int) -> Path:
        chunk = number // int(self._info.get("chunks_size", 1000))
        try:
            name = str(self._info[key]).format(episode_chunk=chunk, episode_index=number, video_key=self._camera)
        except (KeyError, IndexError, ValueError) as error:
            raise TrajectoryError(
                f"{self._source / INFO_FILE}: {key} is {self._info[key]!r}: must name files by episode_chunk, "
                "episode_index and video_key; write the data set in version 2 of LeRobot's format"
            ) from error
        path = self._source / name
        if not path.is_file():
            raise TrajectoryError(f"{path}: is missing, though {INFO_FILE} counts {self.num_episodes} episodes")
        return path


def _read_info(source: Path) -> dict[str, Any]:
    path = source / INFO_FILE
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrajectoryError(f"{path}: can't be read ({error}); name the folder of a LeRobot data set") from error
    missing = [key for key in _NEEDED if not isinstance(info, dict) or key not in info]
    if missing:
        raise TrajectoryError(f"{path}: says nothing of {', '.join(missing)}; name the folder of a LeRobot data set")
    if not str(info["codebase_version"]).startswith("v2"):
        raise TrajectoryError(
            f"{path}: version {info['codebase_version']!r}: only version 2, with files for each episode, can be read; "
            "convert the data set"
        )
    return info


def _camera_of(source: Path, features: Mapping[str, Any], wanted: str | None) -> str:
    cameras = sorted(name for name, feature in features.items() if feature.get("dtype") == "video")
    if wanted is None and len(cameras) == 1:
        return cameras[0]
    if wanted not in cameras:
        raise TrajectoryError(f"{source}: camera {wanted!r}: it has {cameras}; name one with --camera")
    return wanted


def _kept_frames(path: Path, *, frame_skip: int, num_kept: int) -> np.ndarray:
    """Return every so-manieth frame of a video, as many as wanted."""
    av = import_optional("av", extra="worlds", purpose="reading videos")
    frames: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number % frame_skip == 0:
                    frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == num_kept:
                    break
    except (av.error.FFmpegError, IndexError) as error:
        raise TrajectoryError(f"{path}: can't be read as a video ({error}); write it again") from error
    if len(frames) < num_kept:
        raise TrajectoryError(
            f"{path}: gives {len(frames)} frames at a skip of {frame_skip}, the episode's rows ask for {num_kept}; the "
            "video is cut short"
        )
    return np.stack(frames)
