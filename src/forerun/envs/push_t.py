"""Push-T as a task with pictures: a disc pushes a T-shaped block; the world is that of ``stable-worldmodel``.

A square of 512 units. An action is where the disc is drawn to, relative to where it is, in hundreds of units; it gets
about a quarter of the way in one step and keeps its speed. A goal is reached where disc and block together are within
20 units of it and the block within 20 degrees (the criterion of ``swm/PushT-v1``).
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from forerun.envs.pixel_world import EpisodeStart, PolicyName, check_factors
from forerun.envs.push_t_policies import SIZE, Pusher
from forerun.envs.stable_worlds import StableWorlds

STATE_NAMES: Final = (
    "agent_x", "agent_y", "block_x", "block_y", "block_cos", "block_sin", "agent_speed_x", "agent_speed_y",
)  # fmt: skip
_REACHED_UNITS: Final = 20.0
_REACHED_RADIANS: Final = np.pi / 9
_CLEAR_UNITS: Final = 130.0
"""Least distance of a disc from the middle of the block where an episode begins: the block's arms are shorter."""


class PushTWorlds(StableWorlds):
    """Worlds of Push-T.

    Args:
        states: What each begins in, as :data:`STATE_NAMES`.
    """

    def __init__(self, states: Float[np.ndarray, "N 8"]) -> None:
        super().__init__("swm/PushT-v1", len(states))
        for env, state in zip(self.envs, states, strict=True):
            env._set_state(published_state(state))

    @property
    def states(self) -> Float[np.ndarray, "N 8"]:
        """What is known of each world."""
        rows: list[list[float]] = []
        for env in self.envs:
            angle = env.block.angle
            rows.append([*env.agent.position, *env.block.position, np.cos(angle), np.sin(angle), *env.agent.velocity])
        return np.array(rows)


class PushTTask:
    """Push-T; see :class:`forerun.envs.pixel_world.PixelTask`."""

    name = "push-t"
    action_dim = 2
    state_names = STATE_NAMES
    context_names: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()

    def begin(self, policy: PolicyName, factors: frozenset[str], rng: np.random.Generator) -> EpisodeStart:
        """As :meth:`forerun.envs.pixel_world.PixelTask.begin`."""
        check_factors(self, factors)
        block, angle = rng.uniform(100, 400, 2), rng.uniform(0, 2 * np.pi)
        agent = rng.uniform(50, SIZE - 62, 2)
        while np.hypot(*(agent - block)) < _CLEAR_UNITS:
            agent = rng.uniform(50, SIZE - 62, 2)
        state = np.array([*agent, *block, np.cos(angle), np.sin(angle), 0.0, 0.0])
        return EpisodeStart(context=np.zeros(0), state=state, act=Pusher(policy, rng).act)

    def worlds(self, contexts: Float[np.ndarray, "N 0"], states: Float[np.ndarray, "N 8"]) -> PushTWorlds:
        """As :meth:`forerun.envs.pixel_world.PixelTask.worlds`."""
        return PushTWorlds(states)

    def is_reached(self, states: Float[np.ndarray, "N 8"], goals: Float[np.ndarray, "N 8"]) -> Bool[np.ndarray, " N"]:
        """As :meth:`forerun.envs.pixel_world.PixelTask.is_reached`; the disc's speed doesn't count."""
        return (self.distances(states, goals) < _REACHED_UNITS) & (turned(states, goals) < _REACHED_RADIANS)

    def distances(self, states: Float[np.ndarray, "N 8"], goals: Float[np.ndarray, "N 8"]) -> Float[np.ndarray, " N"]:
        """As :meth:`forerun.envs.pixel_world.PixelTask.distances`: of disc and block together."""
        return np.linalg.norm(states[:, :4] - goals[:, :4], axis=1)


def block_has_moved(states: Float[np.ndarray, "N 8"], others: Float[np.ndarray, "N 8"]) -> Bool[np.ndarray, " N"]:
    """Return where the block alone is too far from, or too much turned against, another state to count as there."""
    shift = np.linalg.norm(states[:, 2:4] - others[:, 2:4], axis=1)
    return (shift >= _REACHED_UNITS) | (turned(states, others) >= _REACHED_RADIANS)


def turned(states: Float[np.ndarray, "N 8"], others: Float[np.ndarray, "N 8"]) -> Float[np.ndarray, " N"]:
    """Return the angle between the blocks of two states, in [0, pi]."""
    cosine = states[:, 4] * others[:, 4] + states[:, 5] * others[:, 5]
    sine = states[:, 4] * others[:, 5] - states[:, 5] * others[:, 4]
    return np.abs(np.arctan2(sine, cosine))


def published_state(state: Float[np.ndarray, " 8"]) -> Float[np.ndarray, " 7"]:
    """Return a state as ``stable-worldmodel`` has it: the angle itself, in [0, 2 pi)."""
    angle = np.arctan2(state[5], state[4]) % (2 * np.pi)
    return np.array([*state[:4], angle, *state[6:]])
