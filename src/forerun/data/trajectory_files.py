"""Recordings of other programs as trajectories: NumPy, HDF5 of D4RL or Minari, Parquet with a row a step."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float

from forerun.core.dependencies import import_optional
from forerun.core.errors import TrajectoryError
from forerun.data.trajectories import Episode, Trajectories
from forerun.data.trajectory_layouts import is_lerobot, is_minari, lerobot_arrays, minari_arrays

_REQUIRED: Final = ("observations", "actions", "rewards")
_ENDS: Final = ("terminals", "timeouts")
_LAYOUT: Final = (
    "observations [steps, state], actions [steps, action], rewards [steps], terminals [steps] (the task ended) and "
    "timeouts [steps] (only the time was up)"
)


def load_trajectories(
    path: Path, *, state_names: Sequence[str] | None = None, action_names: Sequence[str] | None = None
) -> Trajectories:
    """Read a recording: Forerun's own, or ``.npz``, ``.hdf5``/``.h5`` or ``.parquet`` of another program.

    Args:
        path: The file.
        state_names: Names to give to the numbers of a state; ``None``: those of the file, or ``s0, s1, ...``.
        action_names: Likewise for actions, or ``a0, a1, ...``.

    Raises:
        TrajectoryError: The file can't be read, or it is no recording; the message says what is wrong with it.
        MissingDependencyError: The package for its format is not installed.
    """
    match path.suffix.lower():
        case ".npz":
            arrays = _read_npz(path)
        case ".hdf5" | ".h5":
            arrays = _read_hdf5(path)
        case ".parquet":
            arrays = _read_parquet(path)
        case other:
            raise TrajectoryError(f"{path}: unknown kind {other!r}; must be .npz, .hdf5, .h5 or .parquet")
    if arrays is None:
        found = Trajectories.load(path)
        for kind, names, own in (
            ("states", state_names, found.state_names),
            ("actions", action_names, found.action_names),
        ):
            if names is not None and tuple(names) != own:
                raise TrajectoryError(
                    f"{path}: its {kind} are {', '.join(own)}, wanted are {', '.join(names)}; record the right task"
                )
        return found
    return trajectories_from_arrays(arrays, source=str(path), state_names=state_names, action_names=action_names)


def trajectories_from_arrays(
    arrays: Mapping[str, np.ndarray],
    *,
    source: str,
    state_names: Sequence[str] | None = None,
    action_names: Sequence[str] | None = None,
) -> Trajectories:
    """Cut flat arrays into episodes, as D4RL lays them out.

    Args:
        arrays: ``observations``, ``actions``, ``rewards``, ``terminals``, ``timeouts``, and ``next_observations`` where
            there are any. Without the latter an episode's last state is not recorded: its last step is left out, unless
            it terminated, when the state before stands in for the one after.
        source: What the recording is called.
        state_names: Names of the numbers of a state; ``None``: ``s0, s1, ...``.
        action_names: Likewise.

    Raises:
        TrajectoryError: An array is missing or of the wrong size, or the ends of episodes can't be told.
    """
    if missing := [name for name in _REQUIRED if name not in arrays]:
        raise TrajectoryError(f"{source}: has no {', '.join(missing)}, only {', '.join(arrays)}; must have {_LAYOUT}")
    if "timeouts" not in arrays:
        what = "terminals alone can't tell" if "terminals" in arrays else "nothing tells"
        raise TrajectoryError(
            f"{source}: has no timeouts: {what} a cut-off episode from one that ended, and a time limit taken for the "
            f"end of the task spoils every value; must have {_LAYOUT}"
        )
    states, actions, rewards = (np.asarray(arrays[name], dtype=np.float32) for name in _REQUIRED)
    rewards = rewards.reshape(-1) if rewards.ndim == 2 and rewards.shape[1] == 1 else rewards
    num_steps = len(states)
    terminals, timeouts = (_flags(arrays.get(name), num_steps, f"{source}: {name}") for name in _ENDS)
    if states.ndim != 2 or actions.ndim != 2 or actions.shape[0] != num_steps or rewards.shape != (num_steps,):
        raise TrajectoryError(
            f"{source}: observations {list(states.shape)}, actions {list(actions.shape)}, rewards "
            f"{list(rewards.shape)}: must have as many rows each; {_LAYOUT}"
        )
    following = arrays.get("next_observations")
    following = None if following is None else np.asarray(following, dtype=np.float32)
    if following is not None and following.shape != states.shape:
        raise TrajectoryError(
            f"{source}: next_observations {list(following.shape)}: must have the shape of observations "
            f"{list(states.shape)}"
        )
    both = terminals & timeouts
    if both.any():
        raise TrajectoryError(
            f"{source}: step {int(np.argmax(both))} is both a terminal and a timeout ({int(both.sum())} steps): an "
            "episode ended or was cut off; clear one of the flags"
        )
    names = _names(state_names, states.shape[1], "s", source), _names(action_names, actions.shape[1], "a", source)
    episodes = list(_episodes(states, actions, rewards, terminals, timeouts, following))
    return Trajectories(episodes=tuple(episodes), state_names=names[0], action_names=names[1], source=source)


def _episodes(
    states: Float[np.ndarray, "steps state"],
    actions: Float[np.ndarray, "steps action"],
    rewards: Float[np.ndarray, " steps"],
    terminals: Bool[np.ndarray, " steps"],
    timeouts: Bool[np.ndarray, " steps"],
    following: Float[np.ndarray, "steps state"] | None,
) -> list[Episode]:
    ends = np.flatnonzero(terminals | timeouts) + 1
    edges = np.unique(np.concatenate([[0], ends, [len(states)]]))
    episodes = []
    for start, end in itertools.pairwise(edges):
        terminated = bool(terminals[end - 1])
        if following is not None:
            last = following[end - 1 : end]
        elif terminated:
            last = states[end - 1 : end]
        else:
            end, last = end - 1, states[end - 1 : end]
        if end > start:
            episodes.append(
                Episode(
                    states=np.concatenate([states[start:end], last]),
                    actions=actions[start:end],
                    rewards=rewards[start:end],
                    terminated=terminated,
                )
            )
    return episodes


def _flags(values: np.ndarray | None, num_steps: int, name: str) -> Bool[np.ndarray, " steps"]:
    if values is None:
        return np.zeros(num_steps, dtype=bool)
    flat = np.asarray(values).reshape(-1)
    if len(flat) != num_steps:
        raise TrajectoryError(f"{name}: {len(flat)} flags for {num_steps} steps: must be one for each")
    return flat.astype(bool)


def _names(names: Sequence[str] | None, count: int, letter: str, source: str) -> tuple[str, ...]:
    if names is None:
        return tuple(f"{letter}{index}" for index in range(count))
    if len(names) != count:
        kind = {"s": "state", "a": "action"}[letter]
        raise TrajectoryError(
            f"{source}: {count} numbers of a{'n' if letter == 'a' else ''} {kind}, wanted are {len(names)}: "
            f"{', '.join(names)}; give the recording of this task, or other names"
        )
    return tuple(names)


def _read_npz(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays, or ``None`` for a recording of Forerun's own."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return None if "header" in file.files else {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise TrajectoryError(f"{path}: can't be read as .npz ({error}); name a whole file without objects") from error


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    h5py = import_optional("h5py", extra="worlds", purpose="reading HDF5")
    try:
        with h5py.File(path, "r") as file:
            if is_minari(file):
                return minari_arrays(file, str(path))
            wanted = (*_REQUIRED, *_ENDS, "next_observations")
            return {name: file[name][()] for name in wanted if name in file}
    except OSError as error:
        raise TrajectoryError(f"{path}: can't be read as HDF5 ({error})") from error


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    """Read a row a step: lists ``observation`` and ``action``, numbers ``reward``, ``terminal``, ``timeout``.

    LeRobot's names for them are understood too.
    """
    parquet = import_optional("pyarrow.parquet", extra="worlds", purpose="reading Parquet")
    arrow = import_optional("pyarrow", extra="worlds", purpose="reading Parquet")
    try:
        columns: dict[str, list[Any]] = parquet.read_table(path).to_pydict()
    except (OSError, arrow.ArrowInvalid) as error:
        raise TrajectoryError(f"{path}: can't be read as Parquet ({error})") from error
    single = {
        "observation": "observations",
        "action": "actions",
        "reward": "rewards",
        "terminal": "terminals",
        "timeout": "timeouts",
        "next_observation": "next_observations",
    }
    try:
        if is_lerobot(columns):
            return lerobot_arrays(columns, str(path))
        return {single.get(name, name): np.asarray(values) for name, values in columns.items()}
    except ValueError as error:
        raise TrajectoryError(
            f"{path}: rows of different sizes ({error}); every observation must have as many numbers, every action too"
        ) from error
