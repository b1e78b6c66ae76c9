"""Policies that record Push-T: strokes through the block, the same with noise, and the published random policy."""

from typing import Final

import numpy as np
from jaxtyping import Float

from forerun.envs.pixel_world import PolicyName

SIZE: Final = 512.0
"""Units of a side."""
REACH: Final = 100.0
"""Units to which a full action draws the disc."""
_NEAR: Final = 100.0
"""The published random policy keeps the disc's next place within so many units of the block, in each direction."""
_FAR: Final = 140.0
"""Greatest distance from the block's middle of a point that a stroke leads to: beyond its arms."""
_MARGIN: Final = 40.0
_ARRIVED: Final = 20.0
_LONGEST: Final = 25
"""Steps after which a stroke ends, arrived or not: the block may be in the way, and the wall behind it."""
_NOISE_STD: Final = 0.2


class Pusher:
    """Acts in one world for one episode.

    Args:
        policy: ``expert`` goes from one point around the block to another, at a speed drawn for each stroke: most
            strokes push. ``noisy`` does so with Gaussian noise on its actions. ``random`` draws even actions and clips
            them to the block's surroundings, as the collection policy of stable-worldmodel does.
        rng: Draws points, speeds and noise.
    """

    def __init__(self, policy: PolicyName, rng: np.random.Generator) -> None:
        self._policy, self._rng = policy, rng
        self._target: Float[np.ndarray, " 2"] | None = None
        self._speed, self._steps_left = 0.0, 0

    def act(self, state: Float[np.ndarray, " 8"]) -> Float[np.ndarray, " 2"]:
        """Return the next action, in [-1, 1].

        Args:
            state: Of the world, as :data:`forerun.envs.push_t.STATE_NAMES`.
        """
        agent, block = state[:2], state[2:4]
        if self._policy == "random":
            place = np.clip(agent + REACH * self._rng.uniform(-1, 1, 2), block - _NEAR, block + _NEAR)
            return np.clip((place - agent) / REACH, -1, 1)
        if self._target is None or self._steps_left <= 0 or np.hypot(*(self._target - agent)) < _ARRIVED:
            self._begin_stroke(block)
        assert self._target is not None
        self._steps_left -= 1
        way = self._target - agent
        action = way / max(float(np.hypot(*way)), 1e-9) * min(self._speed, float(np.hypot(*way)) / REACH)
        if self._policy == "noisy":
            action = action + _NOISE_STD * self._rng.normal(size=2)
        return np.clip(action, -1, 1)

    def _begin_stroke(self, block: Float[np.ndarray, " 2"]) -> None:
        angle, distance = self._rng.uniform(0, 2 * np.pi), _FAR * np.sqrt(self._rng.uniform())
        place = block + distance * np.array([np.cos(angle), np.sin(angle)])
        self._target = np.clip(place, _MARGIN, SIZE - _MARGIN)
        self._speed, self._steps_left = float(self._rng.uniform(0.15, 0.6)), _LONGEST
