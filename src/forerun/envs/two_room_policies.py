"""Policies that act in Two-Room: straight to a goal through the door, the same with noise, and a random walk."""

from typing import Final

import numpy as np
from jaxtyping import Float

from forerun.envs.pixel_world import PolicyName
from forerun.envs.two_room import SPEED, WALL_X, Look, free_position, is_in_wall

_ARRIVED: Final = 4.0
"""Units from its goal at which a wandering expert takes another one."""
_NOISE_STD: Final = 1.0
_MEMORY: Final = 0.9
"""Share of a random walk's last action in its next one."""
_STAY_IN_LANE: Final = 0.5
"""Share of the door's clearance within which the expert goes straight on."""


def expert_action(
    look: Look, position: Float[np.ndarray, " 2"], goal: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, " 2"]:
    """Return the action that goes to a goal on a short way: to the door first if the wall is between.

    Args:
        look: Of the world.
        position: Of the disc, in units.
        goal: Where it is wanted.
    """
    waypoint = goal
    leave, enter = _beside_wall(look, position)
    if (position[0] < WALL_X) != (goal[0] < WALL_X):
        is_at_door = abs(position[1] - look.door_y) <= _STAY_IN_LANE * (look.door_half_width - look.agent_radius)
        waypoint = np.array([enter if is_at_door else leave, look.door_y])
    elif is_in_wall(look, position):
        waypoint = np.array([leave, position[1]])
    steps = (waypoint - position) / SPEED
    return steps / max(1.0, float(np.abs(steps).max()))


def _beside_wall(look: Look, position: Float[np.ndarray, " 2"]) -> tuple[float, float]:
    """Return the x beside the wall on a position's own side, and on the other."""
    away = look.agent_radius + 2 * SPEED
    side = -1.0 if position[0] < WALL_X else 1.0
    return WALL_X + side * away, WALL_X - side * away


class Wanderer:
    """Acts in one world for one episode.

    Args:
        policy: ``expert`` goes from goal to goal; ``noisy`` does so with Gaussian noise on its actions; ``random``
            follows a walk whose actions change slowly.
        look: Of the world.
        rng: Draws goals and noise.
    """

    def __init__(self, policy: PolicyName, look: Look, rng: np.random.Generator) -> None:
        self._policy, self._look, self._rng = policy, look, rng
        self._goal = free_position(look, rng)
        self._walk = rng.normal(size=2)

    def act(self, position: Float[np.ndarray, " 2"]) -> Float[np.ndarray, " 2"]:
        """Return the next action, in [-1, 1].

        Args:
            position: Of the disc, in units.
        """
        if self._policy == "random":
            self._walk = _MEMORY * self._walk + np.sqrt(1 - _MEMORY**2) * self._rng.normal(size=2)
            return np.clip(self._walk, -1, 1)
        if np.hypot(*(self._goal - position)) < _ARRIVED:
            self._goal = free_position(self._look, self._rng)
        action = expert_action(self._look, position, self._goal)
        if self._policy == "noisy":
            action = action + _NOISE_STD * self._rng.normal(size=2)
        return np.clip(action, -1, 1)
