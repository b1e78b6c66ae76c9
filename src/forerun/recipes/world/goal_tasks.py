"""Tasks to plan for: a start and a goal, out of episodes that training never saw."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Float, UInt8

from forerun.core.errors import ConfigError, TrajectoryError
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.envs.pixel_tasks import pixel_task
from forerun.envs.pixel_world import PixelTask, PixelWorld
from forerun.envs.push_t import block_has_moved
from forerun.envs.two_room import WALL_X, Look, is_free
from forerun.envs.two_room_task import look_of

Protocol = Literal["near", "opposite", "push"]
PROTOCOLS: Final[tuple[Protocol, ...]] = ("near", "opposite")
"""Those of Two-Room."""
PROTOCOLS_OF: Final[Mapping[str, tuple[Protocol, ...]]] = {
    "two-room": PROTOCOLS,
    "push-t": ("near", "push"),
    "stable-two-room": ("near",),
    "reacher": ("near",),
}
GOAL_OFFSET_STEPS: Final = 25
_BUDGET_STEPS: Final[Mapping[Protocol, int]] = {"near": 50, "opposite": 100, "push": 50}
_STREAMS: Final[Mapping[Protocol, int]] = {"near": 0, "opposite": 1, "push": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class GoalTasks:
    """Tasks of one protocol.

    Attributes:
        protocol: ``near``: the goal is where the episode was 25 actions later, 50 actions may be spent (the published
            protocol, but on held-out episodes and without starts that are at the goal already). ``opposite``: the goal
            is in the other room, 100 actions may be spent. ``push``: as ``near``, where the block must be moved.
        task: Whose worlds these are, and what counts as reached.
        contexts: Of each world.
        starts: State of each world at the start.
        goals: State that each is wanted in.
        recorded: The blocks of actions that led from start to goal in the episode; NaN where there are none.
        resolution: Pixels of a frame.
        frame_skip: Actions between two frames.
    """

    protocol: Protocol
    task: PixelTask
    contexts: Float[np.ndarray, "tasks context"]
    starts: Float[np.ndarray, "tasks state"]
    goals: Float[np.ndarray, "tasks state"]
    recorded: Float[np.ndarray, "tasks blocks action"]
    resolution: int
    frame_skip: int

    @property
    def num_tasks(self) -> int:
        """How many."""
        return len(self.starts)

    @property
    def budget_steps(self) -> int:
        """Actions that may be spent."""
        return _BUDGET_STEPS[self.protocol]

    @property
    def looks(self) -> list[Look]:
        """How each world looks, in Two-Room.

        Raises:
            ConfigError: The task is another one.
        """
        if self.task.name != "two-room":
            raise ConfigError(f"task {self.task.name!r}: teleports and the expert are those of 'two-room'")
        return [look_of(context) for context in self.contexts]

    @property
    def goal_pixels(self) -> UInt8[np.ndarray, "tasks height width 3"]:
        """What the camera sees at each goal."""
        return self.task.worlds(self.contexts, self.goals).render(self.resolution)

    def worlds(self) -> PixelWorld:
        """Return new worlds, at the starts."""
        return self.task.worlds(self.contexts, self.starts)


def held_out_tasks(
    held_out: PixelEpisodes,
    protocol: Protocol,
    *,
    num_tasks: int,
    frame_skip: int,
    seed: int,
    task: str = "two-room",
) -> GoalTasks:
    """Draw tasks from held-out episodes.

    Args:
        held_out: Episodes of the task.
        protocol: Which kind.
        num_tasks: How many, drawn without replacement of their start.
        frame_skip: Actions between two frames.
        seed: Draws.
        task: Name of the task.

    Raises:
        ConfigError: The task has no such protocol.
        TrajectoryError: There are too few episodes for so many tasks.
    """
    if protocol not in PROTOCOLS_OF[task]:
        raise ConfigError(f"protocol {protocol!r}: those of task {task!r} are {', '.join(PROTOCOLS_OF[task])}")
    rng = np.random.default_rng((seed, _STREAMS[protocol]))
    episode_of_row = np.repeat(np.arange(held_out.num_episodes), held_out.lengths)
    num_blocks = GOAL_OFFSET_STEPS // frame_skip
    kind = pixel_task(task)
    rows: list[tuple[int, int]] = []
    for start_row in rng.permutation(len(held_out.pixels)).tolist():
        if len(rows) == num_tasks:
            break
        if protocol == "opposite":
            goal_row = int(rng.integers(len(held_out.pixels)))
        else:
            goal_row = start_row + num_blocks
            if goal_row > held_out.last_rows[episode_of_row[start_row]]:
                continue
        start, goal = (held_out.states[[row]].astype(np.float64) for row in (start_row, goal_row))
        if _is_task(protocol, kind, held_out.context[episode_of_row[start_row]], start, goal):
            rows.append((start_row, goal_row))
    if len(rows) < num_tasks:
        raise TrajectoryError(
            f"{num_tasks} tasks of protocol {protocol!r}: the {held_out.num_episodes} held-out episodes give "
            f"{len(rows)}; ask for fewer, or collect more episodes"
        )
    starts, goals = np.array(rows).T
    recorded = np.full((num_tasks, num_blocks, held_out.action_dim), np.nan)
    if protocol != "opposite":
        recorded = held_out.actions[starts[:, None] + np.arange(num_blocks)].astype(np.float64)
    return GoalTasks(
        protocol=protocol,
        task=kind,
        contexts=held_out.context[episode_of_row[starts]],
        starts=held_out.states[starts].astype(np.float64),
        goals=held_out.states[goals].astype(np.float64),
        recorded=recorded,
        resolution=held_out.image_size[0],
        frame_skip=frame_skip,
    )


def _is_task(protocol: Protocol, task: PixelTask, context: np.ndarray, start: np.ndarray, goal: np.ndarray) -> bool:
    """Return whether a start and a goal (one row each) make a task."""
    if protocol == "opposite":
        is_other_room = bool((start[0, 0] < WALL_X) != (goal[0, 0] < WALL_X))
        return is_other_room and is_free(look_of(context), goal[0])
    if protocol == "push":
        return bool(block_has_moved(start, goal)[0])
    return not bool(task.is_reached(start, goal)[0])
