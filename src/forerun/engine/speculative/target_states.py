"""The target's own keys and values, handed to a draft that reads them in place of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forerun.core.protocols import LanguageModel
from forerun.engine.request import Request


class TargetStates:
    """Hands over what the target has computed for accepted tokens, each position once.

    Args:
        target: The target model.
        layer_ids: Its layers that the draft reads, one for each of the draft's.
    """

    def __init__(self, target: LanguageModel, *, layer_ids: Sequence[int]) -> None:
        self._target, self._layer_ids = target, tuple(layer_ids)
        self._num_taken: dict[int, int] = {}

    def take(self, request: Request) -> tuple[int, np.ndarray]:
        """Return the first position not handed over before, and the states from there on.

        float32 ``[num_positions, num_layers, 2, num_kv_heads, head_dim]``, up to the last token, which the target has
        not yet read.
        """
        start, stop = self._num_taken.get(request.index, 0), request.num_computed_tokens
        self._num_taken[request.index] = stop
        return start, self._target.read_states(request.sequence, start, stop, layer_ids=self._layer_ids)

    def forget(self, request: Request) -> None:
        """Forget a request."""
        self._num_taken.pop(request.index, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class StateShape:
    """Sizes of the states that two processes share.

    Attributes:
        num_requests: Requests at a time.
        capacity: Positions per request.
        num_layers: Layers that the draft reads; 0: none are shared.
        num_kv_heads: Key/value heads of a layer.
        head_dim: Width of a head.
    """

    num_requests: int
    capacity: int
    num_layers: int
    num_kv_heads: int
    head_dim: int

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape of the array."""
        return (self.num_requests, self.capacity, self.num_layers, 2, self.num_kv_heads, self.head_dim)

    @property
    def num_bytes(self) -> int:
        """Bytes of the array, in float16."""
        return 2 * int(np.prod(self.dims))


class StateBuffer:
    """States in memory that target and drafter share.

    Nothing locks: the target writes before it sends the message that makes the drafter read.

    Args:
        buffer: At least ``shape.num_bytes`` bytes; pages are touched as positions are used.
        shape: Sizes, the same on both sides.
    """

    def __init__(self, buffer: memoryview, shape: StateShape) -> None:
        self._states = np.frombuffer(buffer, np.float16, int(np.prod(shape.dims))).reshape(shape.dims)

    def put(self, request: int, start: int, states: np.ndarray) -> None:
        """Target: store the states of the positions from ``start`` on."""
        self._states[request, start : start + len(states)] = states

    def get(self, request: int, start: int, stop: int) -> np.ndarray:
        """Drafter: return the states from ``start`` to ``stop``, float32."""
        return self._states[request, start:stop].astype(np.float32)
