"""How the tokens after some rows are chosen, where the logits need not leave the device for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from forerun.core.rng import stream_key


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """How the tokens of one request are chosen, as far as a device can.

    Attributes:
        temperature: 0 takes the likeliest token, and nothing else counts.
        seed: Root seed.
        request: Number of the request among those that share the seed.
        top_k: Of the sampling parameters; 0 keeps all.
        top_p: 1 keeps all.
        min_p: 0 keeps all.
    """

    temperature: float
    seed: int
    request: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def truncates(self) -> bool:
        """Whether some tokens may get probability 0."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    def keys(self, *, first_position: int, num_positions: int) -> np.ndarray:
        """Return the keys of the noise that target and draft share, int64 ``[num_positions]``; zeros where greedy.

        Args:
            first_position: Index of the first token in its sequence, prompt included.
            num_positions: How many follow each other.
        """
        if self.temperature == 0:
            return np.zeros(num_positions, np.int64)
        places = range(first_position, first_position + num_positions)
        keys = [stream_key(self.seed, self.request, position, "coupling") for position in places]
        return np.array(keys, np.uint64).view(np.int64)

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers that a device chooses by, named as in :data:`CHOICE_ARRAYS`."""
        truncates = self.truncates
        return {
            "temperatures": self.temperature,
            "top_ks": self.top_k if truncates else 0,
            "top_ps": self.top_p if truncates else 1.0,
            "log_min_ps": math.log(self.min_p) if truncates and self.min_p > 0 else -math.inf,
        }


CHOICE_ARRAYS: Final = {
    "temperatures": np.float64,
    "top_ks": np.int64,
    "top_ps": np.float64,
    "log_min_ps": np.float64,
}
"""The arrays that say how each of some rows chooses, and their types."""
FLOAT_CHOICE_ARRAYS: Final = frozenset(name for name, kind in CHOICE_ARRAYS.items() if kind is np.float64)
"""Those of floats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """For M rows: the likeliest token, or with a temperature the one that shared noise picks of what is kept.

    Attributes:
        arrays: Those of :data:`CHOICE_ARRAYS`, ``[M]`` each, and ``keys``: int64, the bits of
            :func:`forerun.core.rng.stream_key` of each row's position.
    """

    arrays: dict[str, np.ndarray]

    @classmethod
    def of_positions(cls, parts: Sequence[tuple[Choice, int, int]]) -> Self:
        """Build the choice for rows that decide neighbouring positions.

        Args:
            parts: ``(choice, first_position, num_positions)`` of each request.
        """
        counts = [count for _, _, count in parts]
        numbers = [choice.numbers for choice, _, _ in parts]
        arrays = {
            name: np.repeat(np.array([some[name] for some in numbers], kind), counts)
            for name, kind in CHOICE_ARRAYS.items()
        }
        keys = [choice.keys(first_position=first, num_positions=count) for choice, first, count in parts]
        return cls(arrays=arrays | {"keys": np.concatenate(keys)})

    @property
    def has_noise(self) -> bool:
        """Whether any row has a temperature."""
        return bool(self.arrays["temperatures"].any())

    @property
    def truncates(self) -> bool:
        """Whether any row gives some tokens probability 0."""
        arrays = self.arrays
        return bool(arrays["top_ks"].any() or (arrays["top_ps"] < 1).any() or np.isfinite(arrays["log_min_ps"]).any())

    @property
    def needed(self) -> dict[str, np.ndarray]:
        """The arrays without those that keep everything."""
        names = ("temperatures", "keys") if not self.truncates else (*CHOICE_ARRAYS, "keys")
        return {name: self.arrays[name] for name in names}
