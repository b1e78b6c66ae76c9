"""What the target has computed for accepted tokens, handed to a draft that reads it.

Its own keys and values, which take the place of the draft's, or the hidden states that enter some of its layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from forerun.core.features import FeatureSource
from forerun.core.protocols import LanguageModel
from forerun.engine.request import Request

ReadStates = Callable[[int, int, int], np.ndarray]
"""Gives what there is of a sequence from a first to before a last slot, float32, one entry per slot."""


class TargetStates:
    """Hands over what the target has computed for accepted tokens, each position once.

    Args:
        read: Reads it out of the target.
    """

    def __init__(self, read: ReadStates) -> None:
        self._read = read
        self._num_taken: dict[int, int] = {}

    @classmethod
    def keys_and_values(cls, target: LanguageModel, *, layer_ids: Sequence[int]) -> "TargetStates":
        """Return those of some layers, one for each of the draft's."""
        return cls(partial(target.read_states, layer_ids=tuple(layer_ids)))

    @classmethod
    def features(cls, target: FeatureSource, *, layer_ids: Sequence[int]) -> "TargetStates":
        """Return the hidden states that enter some layers; the target keeps them from now on."""
        target.keep_features(layer_ids)
        return cls(target.read_features)

    def take(self, request: Request) -> tuple[int, np.ndarray]:
        """Return the first position not handed over before, and the states from there on.

        One entry per position, up to the last token, which the target has not yet read.
        """
        start, stop = self._num_taken.get(request.index, 0), request.num_computed_tokens
        self._num_taken[request.index] = stop
        return start, self._read(request.sequence, start, stop)

    def forget(self, request: Request) -> None:
        """Forget a request."""
        self._num_taken.pop(request.index, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class StateShape:
    """Sizes of the states that two processes share.

    Attributes:
        num_requests: Requests at a time.
        capacity: Positions per request.
        entry: Shape of what a position has; ``(0,)``: nothing is shared.
        is_wide: Whether numbers are kept in float32: hidden states may be larger than float16 can say.
    """

    num_requests: int
    capacity: int
    entry: tuple[int, ...]
    is_wide: bool

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape of the array."""
        return (self.num_requests, self.capacity, *self.entry)

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Type of its numbers."""
        return np.dtype(np.float32 if self.is_wide else np.float16)

    @property
    def num_bytes(self) -> int:
        """Bytes of the array."""
        return self.dtype.itemsize * int(np.prod(self.dims))


class StateBuffer:
    """States in memory that target and drafter share.

    Nothing locks: the target writes before it sends the message that makes the drafter read.

    Args:
        buffer: At least ``shape.num_bytes`` bytes; pages are touched as positions are used.
        shape: Sizes, the same on both sides.
    """

    def __init__(self, buffer: memoryview, shape: StateShape) -> None:
        self._states = np.frombuffer(buffer, shape.dtype, int(np.prod(shape.dims))).reshape(shape.dims)

    def put(self, request: int, start: int, states: np.ndarray) -> None:
        """Target: store the states of the positions from ``start`` on."""
        self._states[request, start : start + len(states)] = states

    def get(self, request: int, start: int, stop: int) -> np.ndarray:
        """Drafter: return the states from ``start`` to ``stop``, float32."""
        return self._states[request, start:stop].astype(np.float32)
