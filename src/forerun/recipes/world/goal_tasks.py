"""Tasks to plan for: a start and a goal, out of episodes that training never saw."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Float, UInt8

from forerun.core.errors import TrajectoryError
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.envs.two_room import SUCCESS_RADIUS, WALL_X, Look, TwoRoom, is_free
from forerun.worldmodels.collection import look_of

Protocol = Literal["near", "opposite"]
PROTOCOLS: Final[tuple[Protocol, ...]] = ("near", "opposite")
_GOAL_OFFSET_STEPS: Final = 25
_BUDGET_STEPS: Final = {"near": 50, "opposite": 100}


@dataclass(frozen=True, kw_only=True, slots=True)
class GoalTasks:
    """Tasks of one protocol.

    Attributes:
        protocol: ``near``: the goal is where the episode was 25 actions later, 50 actions may be spent (the published
            protocol, but on held-out episodes and without starts that are at the goal already). ``opposite``: the goal
            is in the other room, 100 actions may be spent.
        looks: Of each world.
        starts: Of each disc.
        goals: Where each is wanted; reached within 16 units.
        resolution: Pixels of a frame.
        frame_skip: Actions between two frames.
    """

    protocol: Protocol
    looks: list[Look]
    starts: Float[np.ndarray, "tasks 2"]
    goals: Float[np.ndarray, "tasks 2"]
    resolution: int
    frame_skip: int

    @property
    def budget_steps(self) -> int:
        """Actions that may be spent."""
        return _BUDGET_STEPS[self.protocol]

    @property
    def goal_pixels(self) -> UInt8[np.ndarray, "tasks height width 3"]:
        """What the camera sees at each goal."""
        return TwoRoom(self.looks, self.goals).render(self.resolution)


def held_out_tasks(
    held_out: PixelEpisodes, protocol: Protocol, *, num_tasks: int, frame_skip: int, seed: int
) -> GoalTasks:
    """Draw tasks from held-out episodes.

    Args:
        held_out: Two-Room episodes.
        protocol: Which kind.
        num_tasks: How many, drawn without replacement of their start.
        frame_skip: Actions between two frames.
        seed: Draws.

    Raises:
        TrajectoryError: There are too few episodes for so many tasks.
    """
    rng = np.random.default_rng((seed, PROTOCOLS.index(protocol)))
    episode_of_row = np.repeat(np.arange(held_out.num_episodes), held_out.lengths)
    looks: list[Look] = []
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for start_row in rng.permutation(len(held_out.pixels)):
        if len(looks) == num_tasks:
            break
        episode = int(episode_of_row[start_row])
        look = look_of(held_out.context[episode])
        start = held_out.states[start_row].astype(np.float64)
        if protocol == "near":
            goal_row = start_row + _GOAL_OFFSET_STEPS // frame_skip
            if goal_row > held_out.last_rows[episode]:
                continue
        else:
            goal_row = rng.integers(len(held_out.pixels))
        goal = held_out.states[goal_row].astype(np.float64)
        if _is_task(protocol, look, start, goal):
            looks.append(look)
            pairs.append((start, goal))
    if len(looks) < num_tasks:
        raise TrajectoryError(
            f"{num_tasks} tasks of protocol {protocol!r}: the {held_out.num_episodes} held-out episodes give "
            f"{len(looks)}; ask for fewer, or collect more episodes"
        )
    return GoalTasks(
        protocol=protocol,
        looks=looks,
        starts=np.stack([start for start, _ in pairs]),
        goals=np.stack([goal for _, goal in pairs]),
        resolution=held_out.image_size[0],
        frame_skip=frame_skip,
    )


def _is_task(protocol: Protocol, look: Look, start: np.ndarray, goal: np.ndarray) -> bool:
    if protocol == "near":
        return bool(np.hypot(*(goal - start)) > SUCCESS_RADIUS)
    return bool((start[0] < WALL_X) != (goal[0] < WALL_X)) and is_free(look, goal)
