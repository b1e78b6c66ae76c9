"""How the tokens after some rows are chosen, where the logits need not leave the device for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from forerun.core.rng import Purpose, stream_key, uniform


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

    def uniforms(self, purpose: Purpose, *, first_position: int, num_positions: int) -> np.ndarray:
        """Return the uniform numbers of some positions for a purpose, float64 ``[num_positions]``; zeros where greedy.

        Args:
            purpose: What they decide.
            first_position: As for :meth:`keys`.
            num_positions: As for :meth:`keys`.
        """
        if self.temperature == 0:
            return np.zeros(num_positions)
        places = range(first_position, first_position + num_positions)
        return np.array([uniform(self.seed, self.request, position, purpose) for position in places])

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
FLOAT_CHOICE_ARRAYS: Final = frozenset(
    {"draws", "accepts"} | {name for name, kind in CHOICE_ARRAYS.items() if kind is np.float64}
)
"""Those of floats, with those of :class:`Selection`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftedPart:
    """Rows of a request that verify a draft: one for each of its tokens, and one for the token after it.

    Attributes:
        choice: How the request's tokens are chosen.
        first_position: Index of the first of the tokens in its sequence, prompt included.
        token_ids: The draft; may be empty.
        has_laws: Whether the laws that it was drawn from lie beside the target; else it was chosen without chance.
    """

    choice: Choice
    first_position: int
    token_ids: Sequence[int]
    has_laws: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """For M rows: the likeliest token; or with a temperature a draw from what is kept, by shared noise or by numbers.

    Attributes:
        arrays: Those of :data:`CHOICE_ARRAYS`, ``[M]`` each. For shared noise ``keys``: int64, the bits of
            :func:`forerun.core.rng.stream_key` of each row's position. Else ``draws``: float64, the uniform number
            that a token is drawn by. Where any of the rows verifies a draft, ``drafted``, int64: the token that was
            drafted after each row, or -1, and ``accepts``, float64: the uniform number that it is accepted by. Where
            any of these was drawn from a law, ``has_laws``, int64: whether the law of each lies beside the target.
    """

    arrays: dict[str, np.ndarray]

    @classmethod
    def of_positions(cls, parts: Sequence[tuple[Choice, int, int]]) -> Self:
        """Build the choice for rows that decide neighbouring positions.

        Args:
            parts: ``(choice, first_position, num_positions)`` of each request.
        """
        keys = [choice.keys(first_position=first, num_positions=count) for choice, first, count in parts]
        arrays = _choice_arrays([choice for choice, _, _ in parts], [count for _, _, count in parts])
        return cls(arrays=arrays | {"keys": np.concatenate(keys)})

    @classmethod
    def of_drafts(cls, parts: Sequence[DraftedPart]) -> Self:
        """Build the choice for rows that verify drafts by the rule of rejection.

        The token of a row is the drafted one if that is accepted, else a draw from the residual; that of the last row,
        a draw from the target's law. So what is kept of a draft is what agrees, as with shared noise.
        """
        counts = [len(part.token_ids) + 1 for part in parts]
        arrays = _choice_arrays([part.choice for part in parts], counts)
        draws: list[np.ndarray] = []
        accepts: list[np.ndarray] = []
        for part, count in zip(parts, counts, strict=True):
            first, choice = part.first_position, part.choice
            draws.append(choice.uniforms("residual", first_position=first, num_positions=count - 1))
            draws.append(choice.uniforms("sample", first_position=first + count - 1, num_positions=1))
            accepts.append(choice.uniforms("accept", first_position=first, num_positions=count))
        arrays["draws"] = np.concatenate(draws)
        if any(part.token_ids for part in parts):
            arrays["drafted"] = np.concatenate([np.array([*part.token_ids, -1], np.int64) for part in parts])
            arrays["accepts"] = np.concatenate(accepts)
            if any(part.has_laws for part in parts):
                arrays["has_laws"] = np.repeat(np.array([part.has_laws for part in parts], np.int64), counts)
        return cls(arrays=arrays)

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
        is_needed = CHOICE_ARRAYS.keys() if self.truncates else {"temperatures"}
        return {name: array for name, array in self.arrays.items() if name in is_needed or name not in CHOICE_ARRAYS}


def _choice_arrays(choices: Sequence[Choice], counts: Sequence[int]) -> dict[str, np.ndarray]:
    """Return :data:`CHOICE_ARRAYS` of so many rows of each choice."""
    numbers = [choice.numbers for choice in choices]
    return {
        name: np.repeat(np.array([some[name] for some in numbers], kind), counts)
        for name, kind in CHOICE_ARRAYS.items()
    }
