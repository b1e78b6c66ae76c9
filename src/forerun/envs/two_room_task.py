"""Two-Room as a task with pictures: looks as numbers of a context, beginnings of episodes, the goal's radius."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from forerun.envs.pixel_world import EpisodeStart, PolicyName
from forerun.envs.two_room import ACTION_DIM, STATE_NAMES, SUCCESS_RADIUS, Look, TwoRoom, free_position, varied
from forerun.envs.two_room_policies import Wanderer

CONTEXT_NAMES: Final = (
    "agent_red", "agent_green", "agent_blue", "wall_red", "wall_green", "wall_blue", "floor_red", "floor_green",
    "floor_blue", "agent_radius", "door_y", "door_half_width",
)  # fmt: skip


class TwoRoomTask:
    """The Two-Room of this package; see :class:`forerun.envs.pixel_world.PixelTask`."""

    name = "two-room"
    action_dim = ACTION_DIM
    state_names = STATE_NAMES
    context_names = CONTEXT_NAMES
    factors = ("color", "size", "door")

    def begin(self, policy: PolicyName, factors: frozenset[str], rng: np.random.Generator) -> EpisodeStart:
        """As :meth:`forerun.envs.pixel_world.PixelTask.begin`."""
        look = varied(Look(), factors, rng)
        act = Wanderer(policy, look, rng).act
        return EpisodeStart(context=context_of(look), state=free_position(look, rng), act=act)

    def worlds(self, contexts: Float[np.ndarray, "N C"], states: Float[np.ndarray, "N 2"]) -> TwoRoom:
        """As :meth:`forerun.envs.pixel_world.PixelTask.worlds`."""
        return TwoRoom([look_of(context) for context in contexts], states)

    def is_reached(self, states: Float[np.ndarray, "N 2"], goals: Float[np.ndarray, "N 2"]) -> Bool[np.ndarray, " N"]:
        """As :meth:`forerun.envs.pixel_world.PixelTask.is_reached`: within 16 units."""
        return self.distances(states, goals) <= SUCCESS_RADIUS

    def distances(self, states: Float[np.ndarray, "N 2"], goals: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, " N"]:
        """As :meth:`forerun.envs.pixel_world.PixelTask.distances`."""
        return np.hypot(*(states - goals).T)


def look_of(context: Float[np.ndarray, " C"]) -> Look:
    """Return the look that an episode's context describes."""
    colours = [tuple(int(level) for level in context[start : start + 3]) for start in (0, 3, 6)]
    return Look(
        agent_rgb=colours[0],  # pyright: ignore[reportArgumentType] (three levels, by the slice)
        wall_rgb=colours[1],  # pyright: ignore[reportArgumentType]
        floor_rgb=colours[2],  # pyright: ignore[reportArgumentType]
        agent_radius=float(context[9]),
        door_y=float(context[10]),
        door_half_width=float(context[11]),
    )


def context_of(look: Look) -> Float[np.ndarray, " C"]:
    """Return a look as the numbers that :func:`look_of` reads."""
    return np.array([
        *look.agent_rgb, *look.wall_rgb, *look.floor_rgb, look.agent_radius, look.door_y, look.door_half_width,
    ])  # fmt: skip
