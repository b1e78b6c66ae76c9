"""Recorded control: episodes of states, actions and rewards, checked once, saved with a digest."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from forerun.core.errors import TrajectoryError


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """One episode of L steps.

    Attributes:
        states: L + 1 of them: the last one is where the episode ended.
        actions: Taken in all states but the last.
        rewards: Of each action.
        terminated: Whether the task ended by itself. An episode that was only cut off (a time limit) is not terminated:
            its last state has a future.
    """

    states: Float[np.ndarray, "steps_and_one state"]
    actions: Float[np.ndarray, "steps action"]
    rewards: Float[np.ndarray, " steps"]
    terminated: bool

    @property
    def num_steps(self) -> int:
        """L."""
        return len(self.actions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectories:
    """Episodes of one task.

    Attributes:
        episodes: At least one, all of the same sizes.
        state_names: A name for each number of a state.
        action_names: A name for each number of an action.
        source: Where they come from, in a few words.
    """

    episodes: tuple[Episode, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if not self.episodes:
            raise TrajectoryError(f"{self.source}: no episode; record at least one")
        for index, episode in enumerate(self.episodes):
            _check_episode(episode, len(self.state_names), len(self.action_names), f"{self.source}: episode {index}")

    @property
    def num_steps(self) -> int:
        """Steps of all episodes together."""
        return sum(episode.num_steps for episode in self.episodes)

    @property
    def returns(self) -> Float[np.ndarray, " episodes"]:
        """The sum of the rewards of each episode."""
        return np.array([episode.rewards.sum() for episode in self.episodes])

    def split(self, num_held_out: int) -> tuple["Trajectories", "Trajectories"]:
        """Return all but the last episodes, and the last ones: no episode is in both.

        Raises:
            TrajectoryError: Nothing would be left on one side.
        """
        if not 0 < num_held_out < len(self.episodes):
            raise TrajectoryError(
                f"{self.source}: {num_held_out} of {len(self.episodes)} episodes held out: must leave at least one on "
                "each side; record more episodes"
            )
        return self._with(self.episodes[:-num_held_out]), self._with(self.episodes[-num_held_out:])

    def joined(self, other: "Trajectories") -> "Trajectories":
        """Return the episodes of both.

        Raises:
            TrajectoryError: States or actions have other names there.
        """
        if (other.state_names, other.action_names) != (self.state_names, self.action_names):
            raise TrajectoryError(
                f"{self.source} has states {self.state_names} and actions {self.action_names}, {other.source} has "
                f"{other.state_names} and {other.action_names}: only recordings of one task can be joined"
            )
        return self._with((*self.episodes, *other.episodes))

    def digest(self) -> str:
        """Return a SHA-256 of every number."""
        digest = hashlib.sha256()
        for episode in self.episodes:
            for array in (episode.states, episode.actions, episode.rewards):
                digest.update(str(array.shape).encode())
                digest.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
            digest.update(bytes([episode.terminated]))
        return digest.hexdigest()

    def _with(self, episodes: Sequence[Episode]) -> "Trajectories":
        return Trajectories(
            episodes=tuple(episodes),
            state_names=self.state_names,
            action_names=self.action_names,
            source=self.source,
        )

    def save(self, path: Path) -> None:
        """Write everything as ``.npz``, in the layout of :meth:`load`.

        Raises:
            TrajectoryError: The file can't be written.
        """
        header: dict[str, Any] = {
            "format": "forerun-trajectories",
            "state_names": self.state_names,
            "action_names": self.action_names,
            "source": self.source,
            "digest": self.digest(),
        }
        arrays: dict[str, Any] = {
            "states": np.concatenate([episode.states for episode in self.episodes]),
            "actions": np.concatenate([episode.actions for episode in self.episodes]),
            "rewards": np.concatenate([episode.rewards for episode in self.episodes]),
            "num_steps": np.array([episode.num_steps for episode in self.episodes]),
            "terminated": np.array([episode.terminated for episode in self.episodes]),
        }
        partial = path.with_name(f".{path.name}.partial")
        try:
            with partial.open("wb") as file:
                np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)
            partial.replace(path)
        except OSError as error:
            raise TrajectoryError(f"{path}: cannot be written ({error.strerror}); name another file") from error

    @classmethod
    def load(cls, path: Path) -> "Trajectories":
        """Read what :meth:`save` wrote.

        Raises:
            TrajectoryError: The file is missing, of another kind, or its numbers are not those that were written.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                arrays = {name: file[name] for name in ("states", "actions", "rewards", "num_steps", "terminated")}
        except (OSError, KeyError, ValueError) as error:
            raise TrajectoryError(
                f"{path}: is no recording of Forerun ({error}); make one with `forerun mpc collect`, or name a file of "
                "your own with --data"
            ) from error
        ends = np.cumsum(arrays["num_steps"])
        episodes = [
            Episode(
                states=arrays["states"][start + index : end + index + 1],
                actions=arrays["actions"][start:end],
                rewards=arrays["rewards"][start:end],
                terminated=bool(terminated),
            )
            for index, (start, end, terminated) in enumerate(
                zip(ends - arrays["num_steps"], ends, arrays["terminated"], strict=True)
            )
        ]
        found = cls(
            episodes=tuple(episodes),
            state_names=tuple(header["state_names"]),
            action_names=tuple(header["action_names"]),
            source=header["source"],
        )
        if found.digest() != header["digest"]:
            raise TrajectoryError(f"{path}: its numbers are not those that were written; collect or convert it anew")
        return found


def _check_episode(episode: Episode, state_dim: int, action_dim: int, name: str) -> None:
    num_steps = episode.num_steps
    wanted = {
        "states": (num_steps + 1, state_dim),
        "actions": (num_steps, action_dim),
        "rewards": (num_steps,),
    }
    for part, shape in wanted.items():
        array: np.ndarray = getattr(episode, part)
        if array.shape != shape:
            raise TrajectoryError(
                f"{name}: {part} of shape {list(array.shape)}: must be {list(shape)} for {num_steps} steps of "
                f"{state_dim} state numbers and {action_dim} action numbers (one state more than actions: the last one "
                "is where the episode ended)"
            )
        is_wrong = ~np.isfinite(array)
        if is_wrong.any():
            place = np.argwhere(is_wrong)[0].tolist()
            raise TrajectoryError(
                f"{name}: {part}{place} is {array[tuple(place)]} ({int(is_wrong.sum())} such numbers): every number "
                "must be finite; cut the episode before it, or drop the episode"
            )
    if num_steps < 1:
        raise TrajectoryError(f"{name}: has no action; drop it")
