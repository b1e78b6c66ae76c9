"""Sines and cosines of some numbers of a state, for worlds that change sharply from place to place."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveConfig:
    """Which numbers of a state are shown as waves too.

    Attributes:
        indices: Of the numbers; none where the world is smooth.
        num_octaves: Waves of each: the first has a quarter of a turn for each standard deviation, every further one
            twice as many.
    """

    indices: tuple[int, ...] = ()
    num_octaves: int = 4

    def __post_init__(self) -> None:
        # A record read from JSON has a list.
        object.__setattr__(self, "indices", tuple(self.indices))
        if self.num_octaves < 1 or min(self.indices, default=0) < 0:
            raise ConfigError(
                f"num_octaves={self.num_octaves}, indices={list(self.indices)}: must be at least 1, and at least 0 each"
            )

    @property
    def num_features(self) -> int:
        """Numbers that :func:`with_waves` adds to a state."""
        return 2 * self.num_octaves * len(self.indices)


def with_waves(states: Float[Tensor, "*batch state"], config: WaveConfig) -> Float[Tensor, "*batch features"]:
    """Return normalised states with the waves of some of their numbers behind them.

    A plain network learns what varies slowly with its inputs first, and the edge of a wall hardly ever.

    Args:
        states: In units of their standard deviation.
        config: Which numbers.

    Reference:
        Tancik et al. 2020 (arXiv 2006.10739).
    """
    if not config.indices:
        return states
    octaves = 0.5 * math.pi * 2.0 ** torch.arange(config.num_octaves, device=states.device)
    angles = (states[..., list(config.indices), None] * octaves).flatten(-2)
    return torch.cat([states, angles.sin(), angles.cos()], dim=-1)
