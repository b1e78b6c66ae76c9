"""The Two-Room of ``stable-worldmodel`` as a task with pictures: the world in which published numbers are counted.

It differs from ours in its looks (a soft dot of 7 units, a frame of 14 units), not in its rules: an action in [-1, 1]
moves the dot by at most five units in each direction, and a goal is reached within 16 units.
"""

import numpy as np
from jaxtyping import Bool, Float

from forerun.envs.pixel_world import EpisodeStart, PolicyName, check_factors
from forerun.envs.stable_worlds import StableWorlds
from forerun.envs.two_room import SUCCESS_RADIUS, Look, free_position
from forerun.envs.two_room_policies import Wanderer

_LOOK = Look(agent_radius=7.0, door_y=49.0, door_half_width=14.0)
"""What our expert needs to know of that world: where its door is, and how wide."""
_FRAME = 22.0
"""Units from the edge in which a dot never is."""


class StableTwoRoomWorlds(StableWorlds):
    """Worlds of Two-Room.

    Args:
        states: Where each dot is, in units.
    """

    def __init__(self, states: Float[np.ndarray, "N 2"]) -> None:
        super().__init__("swm/TwoRoom-v1", len(states))
        for env, state in zip(self.envs, states, strict=True):
            env._set_state(state)

    @property
    def states(self) -> Float[np.ndarray, "N 2"]:
        """Where each dot is."""
        return np.array([env.agent_position.tolist() for env in self.envs])


class StableTwoRoomTask:
    """Two-Room of stable-worldmodel; see :class:`forerun.envs.pixel_world.PixelTask`."""

    name = "stable-two-room"
    action_dim = 2
    state_names = ("x", "y")
    context_names: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()

    def begin(self, policy: PolicyName, factors: frozenset[str], rng: np.random.Generator) -> EpisodeStart:
        """As :meth:`forerun.envs.pixel_world.PixelTask.begin`."""
        check_factors(self, factors)
        act = Wanderer(policy, _LOOK, rng).act
        place = free_position(_LOOK, rng)
        while not ((place > _FRAME) & (place < 224 - _FRAME)).all():
            place = free_position(_LOOK, rng)
        return EpisodeStart(context=np.zeros(0), state=place, act=act)

    def worlds(self, contexts: Float[np.ndarray, "N 0"], states: Float[np.ndarray, "N 2"]) -> StableTwoRoomWorlds:
        """As :meth:`forerun.envs.pixel_world.PixelTask.worlds`."""
        return StableTwoRoomWorlds(states)

    def is_reached(self, states: Float[np.ndarray, "N 2"], goals: Float[np.ndarray, "N 2"]) -> Bool[np.ndarray, " N"]:
        """As :meth:`forerun.envs.pixel_world.PixelTask.is_reached`: within 16 units."""
        return self.distances(states, goals) < SUCCESS_RADIUS

    def distances(self, states: Float[np.ndarray, "N 2"], goals: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, " N"]:
        """As :meth:`forerun.envs.pixel_world.PixelTask.distances`."""
        return np.hypot(*(states - goals).T)
