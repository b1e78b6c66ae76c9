"""Counter-based random streams for decoding, keyed by (seed, request, position, purpose).

A stream is a pure function of its key: nothing is consumed, so the noise at one position of one request is the same in
every batch, after a preemption, on a cache hit and on a miss, and in another process. Two kinds are offered:

- :func:`uniform`: one number for a decision (accept a draft token, draw from the residual, ...);
- :func:`gumbel_row` and :func:`gumbel_argmax`: one Gumbel number *for each vocabulary id*. Target and draft use the
  same numbers (purpose ``coupling``), which makes them pick the same token wherever their laws are close. A draft over
  a part of the vocabulary computes only its own ids and gets the very values that the target sees.

Bits come from the SplitMix64 finaliser over a Weyl sequence (Steele, Lea and Flood 2014, "Fast splittable pseudorandom
number generators", with the constants of Stafford's variant 13); a uniform is the midpoint of one of 2**52 cells, so it
is never 0 or 1 and the Gumbel tail reaches 36.7 nats. The logarithm is our own series in plain float64 operations
without contraction: every machine gets the same bits, whether a loop is vectorised or not.
"""

import math
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float, Float32, Int64
from llvmlite import ir  # pyright: ignore[reportMissingTypeStubs]
from numba import njit, types
from numba.extending import intrinsic

Purpose = Literal["draft", "accept", "residual", "sample", "coupling"]
"""What a number decides: ``draft`` draws a draft token, ``accept`` accepts or rejects it, ``residual`` draws the token
that replaces a rejected one, ``sample`` draws a bonus or AR token, ``coupling`` is the noise target and draft share."""

_PURPOSE_CODE: Final[dict[Purpose, int]] = {"draft": 0, "accept": 1, "residual": 2, "sample": 3, "coupling": 4}
_MASK: Final = (1 << 64) - 1
WEYL: Final = 0x9E3779B97F4A7C15
MULTIPLIER_1: Final = 0xBF58476D1CE4E5B9
MULTIPLIER_2: Final = 0x94D049BB133111EB
CELL: Final = 2.0**-52
_LN2: Final = math.log(2.0)
SQRT_HALF_BITS: Final = 0x3FE6A09E667F3BCD
"""The float64 sqrt(1/2) as an integer: the lower end of the range to which the logarithm reduces its argument."""

_COMMON_CELLS: Final = 2**52 - 2**44
"""Cells below this hold u < 1 - 2**-8 (255 of 256 numbers), whose Gumbel number is below :data:`_COMMON_CEILING`."""
_COMMON_CEILING: Final = 5.55
_BLOCK: Final = 64

_OPTIONS: Final[dict[str, Any]] = {"cache": True, "nogil": True, "error_model": "numpy"}


@intrinsic
def _bits_of(typingctx: Any, value: Any) -> Any:
    """Reinterpret a float64 as an int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen


@intrinsic
def _float_of(typingctx: Any, bits: Any) -> Any:
    """Reinterpret an int64 as a float64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@njit(inline="always", **_OPTIONS)
def _log(x: Any) -> Any:
    """Return log(x) for a normal positive float64, within 1e-15 relative or absolute; vectorises, unlike libm's."""
    bits = _bits_of(x)  # pyright: ignore[reportCallIssue] (Numba passes the typing context)
    exponent = (bits - SQRT_HALF_BITS) >> 52
    f = _float_of(bits - (exponent << 52)) - 1.0
    # log(1 + f) = 2 artanh(s) with |s| <= 0.172, so that s**22 / 23 is below one unit in the last place.
    s = f / (2.0 + f)
    z = s * s
    series = 1.0 / 21.0
    series = series * z + 1.0 / 19.0
    series = series * z + 1.0 / 17.0
    series = series * z + 1.0 / 15.0
    series = series * z + 1.0 / 13.0
    series = series * z + 1.0 / 11.0
    series = series * z + 1.0 / 9.0
    series = series * z + 1.0 / 7.0
    series = series * z + 1.0 / 5.0
    series = series * z + 1.0 / 3.0
    return exponent * _LN2 + (2.0 * s + 2.0 * s * z * series)


@njit(inline="always", **_OPTIONS)
def _cell(key: Any, token_id: Any) -> Any:
    """Return the cell, 52 random bits, of one vocabulary id in the stream of ``key``."""
    z = key + (np.uint64(token_id) + np.uint64(1)) * np.uint64(WEYL)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MULTIPLIER_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MULTIPLIER_2)
    return np.int64((z ^ (z >> np.uint64(31))) >> np.uint64(12))


@njit(inline="always", **_OPTIONS)
def _gumbel(cell: Any) -> Any:
    return np.float32(-_log(-_log((np.float64(cell) + 0.5) * CELL)))


@njit(**_OPTIONS)
def _fill_range(key: Any, out: Any) -> None:
    for i in range(out.shape[0]):
        out[i] = _gumbel(_cell(key, i))


@njit(**_OPTIONS)
def _fill_ids(key: Any, ids: Any, out: Any) -> None:
    for i in range(out.shape[0]):
        out[i] = _gumbel(_cell(key, ids[i]))


@njit(**_OPTIONS)
def _perturbed_argmax(key: Any, scores: Any, ids: Any, mode: Any) -> Any:
    """Return argmax(scores + gumbel), lowest index on ties, computing only the noise that can still win."""
    winner = mode
    best = np.float64(scores[mode]) + np.float64(_gumbel(_cell(key, mode if ids is None else ids[mode])))
    cells = np.empty(_BLOCK, np.int64)
    for start in range(0, scores.shape[0], _BLOCK):
        block = scores[start : start + _BLOCK]
        block_ids = None if ids is None else ids[start : start + _BLOCK]
        floor = best - _COMMON_CEILING
        # This loop vectorises, and finds nothing in most blocks; the next one does not.
        num_candidates = 0
        for i in range(block.shape[0]):
            cell = _cell(key, start + i if block_ids is None else block_ids[i])
            cells[i] = cell
            num_candidates += (cell >= _COMMON_CELLS) | (np.float64(block[i]) >= floor)
        if num_candidates == 0:
            continue
        for i in range(block.shape[0]):
            score = np.float64(block[i])
            if cells[i] < _COMMON_CELLS and score < floor:
                continue
            total = score + np.float64(_gumbel(cells[i]))
            if total > best or (total == best and start + i < winner):
                best = total
                winner = start + i
    return winner


def _mixed(word: int) -> int:
    word = ((word ^ (word >> 30)) * MULTIPLIER_1) & _MASK
    word = ((word ^ (word >> 27)) * MULTIPLIER_2) & _MASK
    return word ^ (word >> 31)


def stream_key(seed: int, request: int, position: int, purpose: Purpose) -> int:
    """Return the 64-bit key of a stream.

    Args:
        seed: Root seed; its lowest 64 bits count.
        request: Number of the request among those that share the seed.
        position: Index of the decided token in its sequence, prompt included.
        purpose: What the number decides.

    Returns:
        An integer in [0, 2**64).
    """
    key = _mixed((seed + WEYL) & _MASK)
    for word in (request, position, _PURPOSE_CODE[purpose]):
        key = _mixed((key + (word + 1) * WEYL) & _MASK)
    return key


def uniform(seed: int, request: int, position: int, purpose: Purpose) -> float:
    """Return the uniform number of one stream, strictly inside (0, 1).

    Args:
        seed: Root seed; its lowest 64 bits count.
        request: Number of the request among those that share the seed.
        position: Index of the decided token in its sequence, prompt included.
        purpose: What the number decides.

    Returns:
        The midpoint of one of 2**52 equal cells.
    """
    cell = _mixed((stream_key(seed, request, position, purpose) + WEYL) & _MASK) >> 12
    return (cell + 0.5) * CELL


def gumbel_row(
    seed: int, request: int, position: int, ids: Int64[np.ndarray, " ids"] | int
) -> Float32[np.ndarray, " ids"]:
    """Return the Gumbel noise that target and draft share at one position.

    Args:
        seed: Root seed; its lowest 64 bits count.
        request: Number of the request among those that share the seed.
        position: Index of the decided token in its sequence, prompt included.
        ids: Vocabulary ids to give noise for (int64), or a number n for ids 0 to n - 1.

    Returns:
        One standard Gumbel number for each id; it depends on (seed, request, position, id) only.
    """
    key = np.uint64(stream_key(seed, request, position, "coupling"))
    if isinstance(ids, int):
        out = np.empty(ids, np.float32)
        _fill_range(key, out)
    else:
        out = np.empty(ids.shape[0], np.float32)
        _fill_ids(key, ids, out)
    return out


def gumbel_argmax(
    scores: Float[np.ndarray, " candidates"],
    *,
    ids: Int64[np.ndarray, " candidates"] | None,
    seed: int,
    request: int,
    position: int,
) -> int:
    """Return the index of the largest ``score + noise``: one draw from softmax(scores) (the Gumbel-max trick).

    The same as ``argmax(scores.astype(float64) + gumbel_row(...))`` bit for bit, but noise is computed only where it
    can still win; a row of 49,152 costs about a tenth of a millisecond.

    Args:
        scores: Log-probabilities up to a constant, one for each candidate; minus infinity excludes one.
        ids: Vocabulary ids of the candidates (int64); ``None``: candidate i is id i.
        seed: Root seed; its lowest 64 bits count.
        request: Number of the request among those that share the seed.
        position: Index of the decided token in its sequence, prompt included.

    Returns:
        An index into ``scores``; the lowest one on a tie.

    Raises:
        FloatingPointError: The largest score is not finite: the model's logits are broken, or everything is excluded.
    """
    mode = int(np.argmax(scores))
    if not math.isfinite(scores[mode]):
        raise FloatingPointError(f"largest score is {scores[mode]}: scores must be finite somewhere, never NaN or +inf")
    key = np.uint64(stream_key(seed, request, position, "coupling"))
    return int(_perturbed_argmax(key, scores, ids, mode))
