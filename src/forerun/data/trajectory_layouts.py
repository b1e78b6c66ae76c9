"""Other programs' layouts of recorded control, as D4RL's flat arrays: Minari's HDF5, LeRobot's Parquet."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from forerun.core.errors import TrajectoryError

_LEROBOT: Final = ("observation.state", "action", "next.reward", "episode_index")
_LEROBOT_ENDS: Final = ("next.terminated", "next.success")


def is_minari(file: Mapping[str, Any]) -> bool:
    """Return whether an open HDF5 file has a group for each episode, as Minari's have."""
    return "episode_0" in file


def minari_arrays(file: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """Return a Minari recording as flat arrays.

    Args:
        file: The open HDF5 file.
        source: What messages call it.

    Raises:
        TrajectoryError: Observations or actions are no vectors, or their numbers don't fit together.
    """
    names = sorted((name for name in file if name.startswith("episode_")), key=lambda name: int(name[8:]))
    parts: dict[str, list[np.ndarray]] = {}
    for name in names:
        episode = file[name]
        seen, actions = episode["observations"], episode["actions"]
        if not hasattr(seen, "shape") or not hasattr(actions, "shape"):
            raise TrajectoryError(
                f"{source}: {name} has observations or actions of several parts; flatten them to one vector (Minari's "
                "environments with gymnasium.wrappers.FlattenObservation)"
            )
        states = np.asarray(seen[()], dtype=np.float32)
        num_steps = len(actions)
        if states.ndim != 2 or len(states) != num_steps + 1:
            raise TrajectoryError(
                f"{source}: {name} has observations {list(states.shape)} and {num_steps} actions: must be one "
                "observation more than actions, each a vector"
            )
        terminals = np.asarray(episode["terminations"][()], dtype=bool)
        timeouts = np.asarray(episode["truncations"][()], dtype=bool) & ~terminals
        if num_steps and not terminals[-1]:
            timeouts[-1] = True
        found = {
            "observations": states[:-1],
            "next_observations": states[1:],
            "actions": np.asarray(actions[()], dtype=np.float32).reshape(num_steps, -1),
            "rewards": np.asarray(episode["rewards"][()], dtype=np.float32),
            "terminals": terminals,
            "timeouts": timeouts,
        }
        for key, value in found.items():
            parts.setdefault(key, []).append(value)
    return {key: np.concatenate(values) for key, values in parts.items()}


def is_lerobot(columns: Mapping[str, Any]) -> bool:
    """Return whether a table's columns are named as LeRobot's are."""
    return "observation.state" in columns


def lerobot_arrays(columns: Mapping[str, Sequence[Any]], source: str) -> dict[str, np.ndarray]:
    """Return a LeRobot recording as flat arrays.

    An episode's last frame says only that nothing more was recorded, so it is taken for cut off, unless
    ``next.terminated`` or ``next.success`` says that the task has ended.

    Args:
        columns: Of the table, a row a frame.
        source: What messages call it.

    Raises:
        TrajectoryError: A column is missing.
    """
    if missing := [name for name in _LEROBOT if name not in columns]:
        raise TrajectoryError(
            f"{source}: has no {', '.join(missing)}, only {', '.join(columns)}; planning needs states, actions, "
            "rewards, and which episode a frame is of"
        )
    episode = np.asarray(columns["episode_index"])
    is_last = np.append(episode[1:] != episode[:-1], True)
    has_ended = np.zeros(len(episode), dtype=bool)
    for name in _LEROBOT_ENDS:
        if name in columns:
            has_ended |= np.asarray(columns[name], dtype=bool)
    terminals = is_last & has_ended
    return {
        "observations": np.asarray(columns["observation.state"], dtype=np.float32),
        "actions": np.asarray(columns["action"], dtype=np.float32),
        "rewards": np.asarray(columns["next.reward"], dtype=np.float32).reshape(len(episode)),
        "terminals": terminals,
        "timeouts": is_last & ~terminals,
    }
