"""Attention of a few rows over a cache of blocks, compiled by Numba.

Scores and mixed values are both products of a few rows with panels 32 floats wide, summed one step after the other by
fused multiply-adds: nothing about a row's sums depends on the rows beside it, nor on how many slots beyond its own are
spanned (their weights are exactly 0). A table says in which block (:mod:`forerun.nn.cache_blocks`) each 32 slots of a
sequence lie, so sequences may share blocks, and nothing is copied for that. Rows side by side that read the same block
read it together, whichever sequences they are of, with all their heads.

Numba's cache looks at the file of a kernel only: after a change to what is imported here from other files of kernels,
touch this file.
Shape legend as in :mod:`forerun.nn.row_kernels`; N blocks, P blocks of a sequence, W value width (D rounded up to 32),
A ancestors.
"""

import numpy as np
from numba import njit, prange

from forerun.nn.attention_weights import mask_exp
from forerun.nn.panel_product import PANEL, multiply_panel

PARALLEL_SLOTS = 1024
"""Slots seen by all rows of a pass from which on threads take less time than they cost."""
_TILE = 48
"""Query rows (rows times heads of a group) whose scores are held at a time."""
_PLACE, _BLOCK, _FIRST, _COUNT, _STEPS = range(5)
"""Columns of a list of reads: place in the sequences, block, first row of the tile, rows, slots of the block."""


@njit(cache=True, nogil=True, error_model="numpy")
def _slots_seen(lengths: np.ndarray, ancestors: np.ndarray, num_ancestors: np.ndarray) -> np.ndarray:
    """Return for each row the number of slots up to the last one that it sees."""
    seen = np.empty(len(lengths), np.int64)
    for m in range(len(lengths)):
        last = ancestors[m, num_ancestors[m] - 1] + 1 if num_ancestors[m] > 0 else 0
        seen[m] = max(lengths[m], last)
    return seen


@njit(cache=True, nogil=True, error_model="numpy")
def _list_reads(
    tables: np.ndarray, sequences: np.ndarray, seen: np.ndarray, first: int, stop: int, reads: np.ndarray
) -> int:
    """List what a tile of rows reads: place after place, each block once for all rows side by side that share it.

    Args:
        tables: As for :func:`attend`.
        sequences: As for :func:`attend`.
        seen: int64 ``[M]``, from :func:`_slots_seen`.
        first: First row of the tile.
        stop: Row after the last.
        reads: int64 ``[at least rows times places, 5]``, written.

    Returns:
        How many reads there are.
    """
    number, most = 0, 0
    for m in range(first, stop):
        most = max(most, seen[m])
    for place in range(-(-most // PANEL)):
        before = place * PANEL
        m = first
        while m < stop:
            if seen[m] <= before:
                m += 1
                continue
            begun, block, steps = m, tables[sequences[m], place], 0
            while m < stop and seen[m] > before and tables[sequences[m], place] == block:
                steps = max(steps, min(PANEL, seen[m] - before))
                m += 1
            read = reads[number]
            read[_PLACE], read[_BLOCK], read[_FIRST], read[_COUNT], read[_STEPS] = (
                place,
                block,
                begun - first,
                m - begun,
                steps,
            )
            number += 1
    return number


@njit(cache=True, nogil=True, error_model="numpy")
def _attend_part(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    tables: np.ndarray,
    sequences: np.ndarray,
    lengths: np.ndarray,
    ancestors: np.ndarray,
    num_ancestors: np.ndarray,
    out: np.ndarray,
    seen: np.ndarray,
    first_row: int,
    last_row: int,
    first_head: int,
    last_head: int,
) -> None:
    """Let the rows and key/value heads of a range attend; see :func:`attend`."""
    num_rows, num_kv_heads, head_dim, width = len(sequences), queries.shape[0], queries.shape[2], values.shape[3]
    group = queries.shape[1] // num_rows
    most_rows, longest = max(1, _TILE // group), 0
    for m in range(first_row, last_row):
        longest = max(longest, seen[m])
    num_places = -(-longest // PANEL)
    reads = np.empty((min(most_rows, last_row - first_row) * num_places, 5), np.int64)
    # An odd number of cache lines per row: rows a power of two apart would fight for the same sets of the cache.
    scores = np.empty((most_rows * group, num_places * PANEL + 16), np.float32)
    mixed = np.empty((most_rows * group, width), np.float32)
    totals, held = np.empty(most_rows * group, np.float32), np.empty(ancestors.shape[1], np.float32)
    score_bytes, mixed_bytes, head_bytes = scores.shape[1] * 4, width * 4, head_dim * 4
    # Signed, for Numba adds an unsigned to a signed integer in floating point.
    scores_base, mixed_base = np.int64(scores.ctypes.data), np.int64(mixed.ctypes.data)
    keys_base, values_base = np.int64(keys.ctypes.data), np.int64(values.ctypes.data)
    keys_bytes, values_bytes = head_dim * PANEL * 4, PANEL * width * 4
    for first in range(first_row, last_row, most_rows):
        stop = min(first + most_rows, last_row)
        num_reads = _list_reads(tables, sequences, seen, first, stop, reads)
        for g in range(first_head, last_head):
            asked = np.int64(queries[g, first * group :].ctypes.data)
            keys_of_head, values_of_head = keys_base + g * keys_bytes, values_base + g * values_bytes
            for i in range(num_reads):
                read = reads[i]
                panel = keys_of_head + read[_BLOCK] * num_kv_heads * keys_bytes
                ahead = values_of_head + reads[0, _BLOCK] * num_kv_heads * values_bytes
                if i + 1 < num_reads:
                    ahead = keys_of_head + reads[i + 1, _BLOCK] * num_kv_heads * keys_bytes
                row = read[_FIRST] * group
                target = scores_base + row * score_bytes + read[_PLACE] * PANEL * 4
                multiply_panel(
                    read[_COUNT] * group, asked + row * head_bytes, head_bytes, panel, PANEL * 4, head_dim,
                    target, score_bytes, 0, ahead,
                )  # fmt: skip
            for row in range((stop - first) * group):
                m = first + row // group
                padded = -(-seen[m] // PANEL) * PANEL
                totals[row] = mask_exp(scores[row, :padded], lengths[m], ancestors[m], num_ancestors[m], held)
            for i in range(num_reads):
                read, following = reads[i], reads[min(i + 1, num_reads - 1)]
                panel = values_of_head + read[_BLOCK] * num_kv_heads * values_bytes
                ahead = values_of_head + following[_BLOCK] * num_kv_heads * values_bytes
                row = read[_FIRST] * group
                weights = scores_base + row * score_bytes + read[_PLACE] * PANEL * 4
                for d in range(0, width * 4, PANEL * 4):
                    multiply_panel(
                        read[_COUNT] * group, weights, score_bytes, panel + d, width * 4, read[_STEPS],
                        mixed_base + row * mixed_bytes + d, mixed_bytes, read[_PLACE], ahead + d,
                    )  # fmt: skip
            for row in range((stop - first) * group):
                inverse = np.float32(1.0) / totals[row]
                base = (g * group + row % group) * head_dim
                source, target_row = mixed[row], out[first + row // group, base : base + head_dim]
                for d in range(head_dim):
                    target_row[d] = source[d] * inverse


@njit(cache=True, nogil=True, error_model="numpy")
def _share_rows(seen: np.ndarray, num_threads: int) -> np.ndarray:
    """Return the first row of each thread, and the row after the last: all threads have about as many slots to see."""
    starts, total, so_far, thread = np.zeros(num_threads + 1, np.int64), seen.sum(), 0, 1
    for m in range(len(seen)):
        while thread < num_threads and (2 * so_far + seen[m]) * num_threads >= 2 * thread * total:
            starts[thread] = m
            thread += 1
        so_far += seen[m]
    for later in range(thread, num_threads + 1):
        starts[later] = len(seen)
    return starts


@njit(cache=True, nogil=True, error_model="numpy")
def attend(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    tables: np.ndarray,
    sequences: np.ndarray,
    lengths: np.ndarray,
    ancestors: np.ndarray,
    num_ancestors: np.ndarray,
    out: np.ndarray,
) -> None:
    """Let each row attend to the slots it may see: a prefix of its sequence, and its own branch of a draft tree.

    Args:
        queries: float32 ``[G, M group, D]``, scaled by ``D ** -0.5``; the heads of a row adjacent.
        keys: float32 ``[N, G, D, 32]``, contiguous.
        values: float32 ``[N, G, 32, W]``, contiguous.
        tables: int64 ``[sequences, P]``, the block of each 32 slots; those of slots that no row sees are not read.
        sequences: int64 ``[M]``, the rows of each side by side; those of sequences that share blocks should be, too.
        lengths: int64 ``[M]``, slots of the prefix.
        ancestors: int64 ``[M, A]``, further slots, ascending and beyond the prefix.
        num_ancestors: int64 ``[M]``, how many of them count.
        out: float32 ``[M, G group D]``, written.
    """
    seen = _slots_seen(lengths, ancestors, num_ancestors)
    _attend_part(
        queries, keys, values, tables, sequences, lengths, ancestors, num_ancestors, out, seen,
        0, len(sequences), 0, queries.shape[0],
    )  # fmt: skip


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def attend_in_threads(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    tables: np.ndarray,
    sequences: np.ndarray,
    lengths: np.ndarray,
    ancestors: np.ndarray,
    num_ancestors: np.ndarray,
    out: np.ndarray,
    num_threads: int,
) -> None:
    """As :func:`attend`, shared over threads: rows, or heads where rows are few; the result is the same bit for bit."""
    num_rows, num_heads = len(sequences), queries.shape[0]
    seen = _slots_seen(lengths, ancestors, num_ancestors)
    starts = _share_rows(seen, num_threads)
    for thread in prange(num_threads):
        first_row, last_row, first_head, last_head = starts[thread], starts[thread + 1], 0, num_heads
        if num_rows < 2 * num_threads:
            first_row, last_row = 0, num_rows
            first_head, last_head = thread * num_heads // num_threads, (thread + 1) * num_heads // num_threads
        _attend_part(
            queries, keys, values, tables, sequences, lengths, ancestors, num_ancestors, out, seen,
            first_row, last_row, first_head, last_head,
        )  # fmt: skip
