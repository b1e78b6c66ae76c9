"""How the tokens after some rows are chosen, where the logits need not leave the device for it."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from forerun.core.rng import stream_key


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """For M rows: the likeliest token, or with a temperature the one that shared noise picks.

    Attributes:
        temperatures: float64 ``[M]``; 0 takes the likeliest token.
        keys: int64 ``[M]``, the bits of :func:`forerun.core.rng.stream_key` of each row's position.
    """

    temperatures: np.ndarray
    keys: np.ndarray

    @classmethod
    def of_positions(cls, parts: "list[tuple[float, int, int, int, int]]") -> Self:
        """Build the choice for rows that decide neighbouring positions.

        Args:
            parts: ``(temperature, seed, request, first_position, num_positions)`` of each request.
        """
        temperatures = np.concatenate([np.full(part[4], part[0]) for part in parts])
        return cls(
            temperatures=temperatures,
            keys=np.concatenate(
                [
                    position_keys(temperature, seed=seed, request=request, first_position=first, num_positions=num)
                    for temperature, seed, request, first, num in parts
                ]
            ),
        )

    @property
    def has_noise(self) -> bool:
        """Whether any row has a temperature."""
        return bool(self.temperatures.any())


def position_keys(
    temperature: float, *, seed: int, request: int, first_position: int, num_positions: int
) -> np.ndarray:
    """Return the keys of the noise that target and draft share, int64 ``[num_positions]``; zeros at temperature 0.

    Args:
        temperature: Of the request.
        seed: Root seed.
        request: Number of the request among those that share the seed.
        first_position: Index of the first token in its sequence, prompt included.
        num_positions: How many follow each other.
    """
    if temperature == 0:
        return np.zeros(num_positions, np.int64)
    keys = [stream_key(seed, request, first_position + place, "coupling") for place in range(num_positions)]
    return np.array(keys, np.uint64).view(np.int64)
