"""Episodes of frames and actions, checked once; folders of shards with hashes; splits by episode; windows.

Between two kept frames an agent takes a whole *block* of actions (``frame_skip`` of them), recorded as one row. The
block after an episode's last frame was never taken: it is NaN.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, UInt8

from forerun.core.errors import TrajectoryError


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelEpisodes:
    """Episodes, one after the other.

    Attributes:
        pixels: Every frame.
        actions: The block of actions after each frame; NaN after an episode's last one.
        states: Known quantities at each frame, for probes and for starting a world there; may have no columns.
        lengths: Frames of each episode, at least 2.
        context: Numbers that hold for a whole episode, such as colours; may have no columns.
        state_names: A name for each known quantity.
        context_names: A name for each number of the context.
        source: Where they come from, in a few words.
    """

    pixels: UInt8[np.ndarray, "frames height width 3"]
    actions: Float[np.ndarray, "frames action"]
    states: Float[np.ndarray, "frames state"]
    lengths: Int64[np.ndarray, " episodes"]
    context: Float[np.ndarray, "episodes context"]
    state_names: tuple[str, ...]
    context_names: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        """Check everything that later code relies on.

        Raises:
            TrajectoryError: A frame is of another size or kind, a number is missing or not finite, an episode is too
                short.
        """
        if not len(self.lengths):
            raise TrajectoryError(f"{self.source}: no episode; record at least one")
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4 or self.pixels.shape[-1] != 3:
            raise TrajectoryError(
                f"{self.source}: frames are {self.pixels.dtype} {list(self.pixels.shape)}: must be uint8 [frames, "
                "height, width, 3]; convert them to RGB of 8 bits, all of one size"
            )
        num_frames = int(self.lengths.sum())
        wanted = {
            "pixels": (num_frames, *self.pixels.shape[1:]),
            "actions": (num_frames, *self.actions.shape[1:2]),
            "states": (num_frames, len(self.state_names)),
            "context": (len(self.lengths), len(self.context_names)),
        }
        for name, shape in wanted.items():
            array: np.ndarray = getattr(self, name)
            if array.shape != shape:
                raise TrajectoryError(
                    f"{self.source}: {name} of shape {list(array.shape)}: must be {list(shape)} for "
                    f"{len(self.lengths)} episodes of {num_frames} frames in all"
                )
        if self.lengths.min() < 2:
            index = int(self.lengths.argmin())
            raise TrajectoryError(
                f"{self.source}: episode {index} has {self.lengths[index]} frame(s): must have 2 or more; drop it"
            )
        self._check_numbers()

    def _check_numbers(self) -> None:
        is_end = np.zeros(len(self.actions), bool)
        is_end[self.last_rows] = True
        is_missing = ~np.isfinite(self.actions).all(axis=1)
        if (is_missing & ~is_end).any():
            row = int(np.flatnonzero(is_missing & ~is_end)[0])
            episode = int(np.searchsorted(self.last_rows, row))
            raise TrajectoryError(
                f"{self.source}: the action after frame {row - int(self.first_rows[episode])} of episode {episode} is "
                f"{self.actions[row].tolist()} ({int((is_missing & ~is_end).sum())} such rows): only the action after "
                "an episode's last frame may be missing (NaN); cut the episode there"
            )
        for name in ("states", "context"):
            array: np.ndarray = getattr(self, name)
            if not np.isfinite(array).all():
                row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
                raise TrajectoryError(f"{self.source}: {name}[{row}] is {array[row].tolist()}: must be finite")

    @property
    def num_episodes(self) -> int:
        """Episodes."""
        return len(self.lengths)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def action_dim(self) -> int:
        """Numbers of a block of actions."""
        return self.actions.shape[1]

    @property
    def first_rows(self) -> Int64[np.ndarray, " episodes"]:
        """Row of each episode's first frame."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def last_rows(self) -> Int64[np.ndarray, " episodes"]:
        """Row of each episode's last frame."""
        return np.cumsum(self.lengths) - 1

    @property
    def taken_actions(self) -> Float[np.ndarray, "taken action"]:
        """The blocks that were taken: all but those after the last frames."""
        return np.delete(self.actions, self.last_rows, axis=0)

    def window_rows(self, num_frames: int) -> Int64[np.ndarray, " windows"]:
        """Return the row at which each window of so many frames begins; none reaches over an episode's end.

        Raises:
            TrajectoryError: Every episode is shorter.
        """
        rows = [
            first + np.arange(length - num_frames + 1)
            for first, length in zip(self.first_rows, self.lengths, strict=True)
            if length >= num_frames
        ]
        if not rows:
            raise TrajectoryError(
                f"{self.source}: the longest episode has {self.lengths.max()} frames, a window needs {num_frames}; "
                "record longer episodes, or take a shorter history"
            )
        return np.concatenate(rows)

    def take(self, episodes: Sequence[int] | Int64[np.ndarray, " taken"]) -> "PixelEpisodes":
        """Return some episodes, in the order asked for."""
        first, lengths = self.first_rows, self.lengths
        rows = np.concatenate([first[episode] + np.arange(lengths[episode]) for episode in episodes])
        return PixelEpisodes(
            pixels=self.pixels[rows],
            actions=self.actions[rows],
            states=self.states[rows],
            lengths=lengths[list(episodes)],
            context=self.context[list(episodes)],
            state_names=self.state_names,
            context_names=self.context_names,
            source=self.source,
        )

    def split(self, held_out_fraction: float, *, seed: int) -> tuple["PixelEpisodes", "PixelEpisodes"]:
        """Return the episodes to learn from and those held out, drawn by a seed; no episode is in both.

        Args:
            held_out_fraction: Share of the episodes, rounded; at least one is on each side.
            seed: Draws.

        Raises:
            TrajectoryError: There is one episode only.
        """
        if self.num_episodes < 2:
            raise TrajectoryError(f"{self.source}: one episode can't be split; record more")
        num_held_out = min(max(1, round(held_out_fraction * self.num_episodes)), self.num_episodes - 1)
        order = np.random.default_rng((seed, 0x5B11)).permutation(self.num_episodes)
        return self.take(np.sort(order[num_held_out:])), self.take(np.sort(order[:num_held_out]))

    def digest(self) -> str:
        """Return a SHA-256 of every number and name."""
        digest = hashlib.sha256()
        for array in (self.pixels, self.actions, self.states, self.lengths, self.context):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update("\x1f".join([*self.state_names, "", *self.context_names]).encode())
        return digest.hexdigest()


def joined_episodes(parts: Sequence[PixelEpisodes]) -> PixelEpisodes:
    """Return the episodes of several recordings of one task.

    Raises:
        TrajectoryError: Frames, actions or known quantities differ in size or name.
    """
    first = parts[0]
    for part in parts[1:]:
        if (part.image_size, part.action_dim, part.state_names, part.context_names) != (
            first.image_size, first.action_dim, first.state_names, first.context_names,
        ):  # fmt: skip
            raise TrajectoryError(
                f"{part.source} has frames {part.image_size}, {part.action_dim} action numbers and states "
                f"{part.state_names}; {first.source} has {first.image_size}, {first.action_dim} and "
                f"{first.state_names}: only recordings of one task at one size can be joined"
            )
    return PixelEpisodes(
        pixels=np.concatenate([part.pixels for part in parts]),
        actions=np.concatenate([part.actions for part in parts]),
        states=np.concatenate([part.states for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        context=np.concatenate([part.context for part in parts]),
        state_names=first.state_names,
        context_names=first.context_names,
        source=first.source,
    )
