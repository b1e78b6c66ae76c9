"""Where keys and values lie: blocks of 32 slots, copied slot by slot by kernels that Numba compiles.

A block holds keys transposed, and values in rows padded to a multiple of 32, as :mod:`forerun.nn.attention` reads them.
Shape legend: N blocks, G key/value heads, D head_dim, W value width (D rounded up to 32), P blocks of a sequence.
"""

import numpy as np
from numba import njit

from forerun.core.memory import sparse_zeros
from forerun.nn.panel_product import PANEL


def empty_cache(*, num_blocks: int, num_kv_heads: int, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Allocate the keys and values of one layer; memory is touched as blocks are used.

    Args:
        num_blocks: Blocks N of :data:`PANEL` slots.
        num_kv_heads: Key/value heads G.
        head_dim: Width D of a head.

    Returns:
        float32 zeros: keys ``[N, G, D, 32]`` and values ``[N, G, 32, W]``.
    """
    width = -(-head_dim // PANEL) * PANEL
    keys = sparse_zeros((num_blocks, num_kv_heads, head_dim, PANEL))
    return keys, sparse_zeros((num_blocks, num_kv_heads, PANEL, width))


@njit(cache=True, nogil=True, error_model="numpy")
def move_slots(
    keys: np.ndarray, values: np.ndarray, table: np.ndarray, sources: np.ndarray, targets: np.ndarray
) -> None:
    """Copy slots of a sequence onto others, all sources read before a target is written.

    Args:
        keys: float32 ``[N, G, D, 32]``.
        values: float32 ``[N, G, 32, W]``.
        table: int64 ``[P]``, the sequence's blocks.
        sources: int64 slots.
        targets: int64 slots, as many.
    """
    head_dim, width = keys.shape[2], values.shape[3]
    held = np.empty((len(sources), head_dim + width), np.float32)
    for g in range(keys.shape[1]):
        for i, slot in enumerate(sources):
            block, lane = table[slot // PANEL], slot % PANEL
            for d in range(head_dim):
                held[i, d] = keys[block, g, d, lane]
            for d in range(width):
                held[i, head_dim + d] = values[block, g, lane, d]
        for i, slot in enumerate(targets):
            block, lane = table[slot // PANEL], slot % PANEL
            for d in range(head_dim):
                keys[block, g, d, lane] = held[i, d]
            for d in range(width):
                values[block, g, lane, d] = held[i, head_dim + d]


@njit(cache=True, nogil=True, error_model="numpy")
def read_slots(keys: np.ndarray, values: np.ndarray, table: np.ndarray, start: int, states: np.ndarray) -> None:
    """Copy cached keys and values of neighbouring slots out.

    Args:
        keys: float32 ``[N, G, D, 32]``.
        values: float32 ``[N, G, 32, W]``.
        table: int64 ``[P]``, the sequence's blocks.
        start: First slot.
        states: float ``[num_slots, 2, G, D]``, written: keys, then values.
    """
    for i in range(states.shape[0]):
        block, lane = table[(start + i) // PANEL], (start + i) % PANEL
        for g in range(states.shape[2]):
            for d in range(states.shape[3]):
                states[i, 0, g, d] = keys[block, g, d, lane]
                states[i, 1, g, d] = values[block, g, lane, d]


@njit(cache=True, nogil=True, error_model="numpy")
def write_slots(keys: np.ndarray, values: np.ndarray, table: np.ndarray, start: int, states: np.ndarray) -> None:
    """Copy keys and values into neighbouring slots of the cache: the inverse of :func:`read_slots`."""
    for i in range(states.shape[0]):
        block, lane = table[(start + i) // PANEL], (start + i) % PANEL
        for g in range(states.shape[2]):
            for d in range(states.shape[3]):
                keys[block, g, d, lane] = states[i, 0, g, d]
                values[block, g, lane, d] = states[i, 1, g, d]
