"""Several arrays as one: so that the inputs of a pass reach a device in one copy, into a buffer that stays."""

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor


class PackedLayout:
    """Where arrays lie in one row of 8-byte words; floats keep their bits.

    Args:
        shapes: Of each array, by name.
        floats: Names of the arrays that hold float64; the others hold int64.

    Attributes:
        size: Words of all arrays together.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, floats: frozenset[str] = frozenset()) -> None:
        self._shapes, self._floats = dict(shapes), floats
        self.size = sum(prod(shape) for shape in self._shapes.values())

    def pack(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the arrays, one after the other, as int64 ``[size]``."""
        parts: list[np.ndarray] = []
        for name, shape in self._shapes.items():
            kind = np.float64 if name in self._floats else np.int64
            array = np.ascontiguousarray(arrays[name], kind)
            assert array.shape == shape, f"{name} has shape {array.shape}, the layout says {shape}"
            parts.append(array.reshape(-1).view(np.int64))
        return np.concatenate(parts)

    def unpack(self, words: Tensor) -> dict[str, Tensor]:
        """Return views of the arrays in a tensor that holds what :meth:`pack` gave."""
        arrays: dict[str, Tensor] = {}
        start = 0
        for name, shape in self._shapes.items():
            stop = start + prod(shape)
            part = words[start:stop]
            arrays[name] = (part.view(torch.float64) if name in self._floats else part).view(shape)
            start = stop
        return arrays
