"""Attention of a few rows over a cache of blocks, compiled by Numba.

Scores and mixed values are both products of a few rows with panels 32 floats wide, summed one step after the other by
fused multiply-adds written out as LLVM vectors: nothing about a row's sums depends on the rows beside it, nor on how
many slots beyond its own are spanned (their weights are exactly 0). A block holds 32 slots: keys transposed, values in
rows padded to a multiple of 32. A table says in which block each 32 slots of a sequence lie, so sequences may share
blocks, and nothing is copied for that.

Numba's cache looks at the file of a kernel only: after a change to what is imported here from
:mod:`forerun.nn.row_kernels`, touch this file.
Shape legend as in :mod:`forerun.nn.row_kernels`; N blocks, P blocks of a sequence, W value width (D rounded up to 32),
A ancestors.
"""

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, prange, types
from numba.extending import intrinsic

from forerun.core.memory import sparse_zeros
from forerun.nn.row_kernels import FAST_OPTIONS, MAGNITUDE, exp, float_from_bits

PANEL = 32
"""Slots of a block (or value dimensions) per panel: two vectors of 16 floats."""
PARALLEL_SLOTS = 1024
"""Slots seen by all rows of a pass from which on threads take less time than they cost."""
_LANES = 16
_TILE = 48
"""Query rows (rows times heads of a group) whose scores are held at a time."""
_MAX_BLOCK = 12 if binding.get_host_cpu_features().get("avx512f", False) else 3
"""Query rows held in registers: 24 of 32 vectors accumulate; without AVX-512 a vector takes two of 16 registers."""
_FLOAT, _INT64 = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, 16)


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


def _emit_block(
    builder: Any,
    num_rows: int,
    rows: Any,
    row_bytes: Any,
    panel: Any,
    panel_bytes: Any,
    steps: Any,
    out: Any,
    out_bytes: Any,
    goes_on: Any,
) -> None:
    """Emit ``out[r, :32] = sum over steps of rows[r, step] * panel[step, :32]``; strides are in bytes.

    Where ``goes_on`` is not 0, the sum begins with what ``out`` holds.
    """
    fma = builder.module.declare_intrinsic(
        "llvm.fma.v16f32", fnty=ir.FunctionType(_VECTOR, (_VECTOR, _VECTOR, _VECTOR))
    )

    def at(base: Any, *offsets: Any) -> Any:
        for offset in offsets:
            base = builder.add(base, offset)
        return base

    def load(address: Any, kind: Any) -> Any:
        return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)

    def place(index: int) -> Any:
        offset = builder.mul(out_bytes, ir.Constant(_INT64, index // 2))
        return at(out, offset, ir.Constant(_INT64, 64 * (index % 2)))

    is_continued = builder.icmp_signed("!=", goes_on, ir.Constant(_INT64, 0))
    begun = [
        builder.select(is_continued, load(place(index), _VECTOR), ir.Constant(_VECTOR, None))
        for index in range(2 * num_rows)
    ]
    before, loop = builder.block, builder.append_basic_block("mix.loop")
    after = builder.append_basic_block("mix.end")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(_INT64)
    step.add_incoming(ir.Constant(_INT64, 0), before)
    sums = [builder.phi(_VECTOR) for _ in range(2 * num_rows)]
    line = at(panel, builder.mul(step, panel_bytes))
    halves = [load(at(line, ir.Constant(_INT64, 64 * half)), _VECTOR) for half in (0, 1)]
    column = at(rows, builder.mul(step, ir.Constant(_INT64, 4)))
    updated: list[Any] = []
    for row in range(num_rows):
        value = load(at(column, builder.mul(row_bytes, ir.Constant(_INT64, row))), _FLOAT)
        lane = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
        spread = builder.shuffle_vector(lane, lane, ir.Constant(ir.VectorType(ir.IntType(32), 16), [0] * 16))
        updated += [builder.call(fma, (spread, halves[half], sums[2 * row + half])) for half in (0, 1)]
    for held, initial, value in zip(sums, begun, updated, strict=True):
        held.add_incoming(initial, before)
        held.add_incoming(value, loop)
    following = builder.add(step, ir.Constant(_INT64, 1))
    step.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
    builder.position_at_end(after)
    for index, value in enumerate(updated):
        builder.store(value, builder.inttoptr(place(index), _VECTOR.as_pointer()), align=4)


def _block_function(num_rows: int) -> Any:
    @intrinsic
    def block(
        typingctx: Any,
        rows: Any,
        row_bytes: Any,
        panel: Any,
        panel_bytes: Any,
        steps: Any,
        out: Any,
        out_bytes: Any,
        goes_on: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _emit_block(builder, num_rows, *args)
            return context.get_dummy_value()

        return types.void(*(types.intp,) * 8), codegen

    return block


_block_1, _block_2, _block_3, _block_6, _block_12 = (_block_function(num_rows) for num_rows in (1, 2, 3, 6, 12))


@njit(cache=True, nogil=True, error_model="numpy")
def _multiply_panel(
    num_rows: Any,
    rows: Any,
    row_bytes: Any,
    panel: Any,
    panel_bytes: Any,
    steps: Any,
    out: Any,
    out_bytes: Any,
    goes_on: Any,
) -> None:
    """Multiply rows by one panel, adding to what ``out`` holds if ``goes_on`` is not 0.

    All addresses and strides are in bytes, ``steps`` is at least 1.
    """
    done = 0
    while done < num_rows:
        left = num_rows - done
        address, target = rows + done * row_bytes, out + done * out_bytes
        if left >= 12 and _MAX_BLOCK >= 12:
            _block_12(address, row_bytes, panel, panel_bytes, steps, target, out_bytes, goes_on)
            done += 12
        elif left >= 6 and _MAX_BLOCK >= 6:
            _block_6(address, row_bytes, panel, panel_bytes, steps, target, out_bytes, goes_on)
            done += 6
        elif left >= 3:
            _block_3(address, row_bytes, panel, panel_bytes, steps, target, out_bytes, goes_on)
            done += 3
        elif left >= 2:
            _block_2(address, row_bytes, panel, panel_bytes, steps, target, out_bytes, goes_on)
            done += 2
        else:
            _block_1(address, row_bytes, panel, panel_bytes, steps, target, out_bytes, goes_on)
            done += 1


@njit(cache=True, nogil=True, error_model="numpy")
def _sum_by_lanes(values: Any, lanes: Any) -> Any:
    """Return the sum in an order that is written down: the compiler's own would differ with what this is inlined in."""
    lanes[:] = np.float32(0.0)
    whole = len(values) - len(values) % _LANES
    for j in range(0, whole, _LANES):
        for lane in range(_LANES):
            lanes[lane] += values[j + lane]
    total = np.float32(0.0)
    for j in range(whole, len(values)):
        total += values[j]
    for lane in range(_LANES):
        total += lanes[lane]
    return total


@njit(**FAST_OPTIONS)
def mask_exp(scores: Any, length: Any, ancestors: Any, num_ancestors: Any, lanes: Any) -> Any:
    """Turn a row of scores into unnormalised attention weights in place; slots the row may not see get exactly 0.

    Args:
        scores: float32 ``[L]``.
        length: Slots of the prefix that the row sees.
        ancestors: int64, further slots, ascending and beyond the prefix.
        num_ancestors: How many of them count; at least 1 where ``length`` is 0.
        lanes: float32 ``[16]``, written.

    Returns:
        The sum of the weights.
    """
    prefix = scores[:length]
    peak = prefix[0] if length > 0 else scores[ancestors[0]]
    if length > 0:  # the maximum of integers that are ordered as the floats are: see row_kernels
        bits = prefix.view(np.int32)
        highest = bits[0] ^ ((bits[0] >> np.int32(31)) & MAGNITUDE)
        for j in range(length):
            highest = max(highest, bits[j] ^ ((bits[j] >> np.int32(31)) & MAGNITUDE))
        peak = float_from_bits(  # pyright: ignore[reportCallIssue] (Numba passes the typing context)
            highest ^ ((highest >> np.int32(31)) & MAGNITUDE)
        )
    for a in range(num_ancestors):
        peak = max(peak, scores[ancestors[a]])
    for j in range(length):
        prefix[j] = exp(prefix[j] - peak)
    total = _sum_by_lanes(prefix, lanes)
    place = length
    for a in range(num_ancestors):
        slot = ancestors[a]
        weight = exp(scores[slot] - peak)
        total += weight
        for j in range(place, slot):
            scores[j] = np.float32(0.0)
        scores[slot] = weight
        place = slot + 1
    for j in range(place, len(scores)):
        scores[j] = np.float32(0.0)
    return total


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
    first_row: int,
    last_row: int,
    first_head: int,
    last_head: int,
) -> None:
    """Let the rows and key/value heads of a range attend; see :func:`attend`."""
    num_rows, num_kv_heads, head_dim, width = len(sequences), queries.shape[0], queries.shape[2], values.shape[3]
    group = queries.shape[1] // num_rows
    most_rows = max(1, _TILE // group)
    longest = 0
    for m in range(first_row, last_row):
        last = ancestors[m, num_ancestors[m] - 1] + 1 if num_ancestors[m] > 0 else 0
        longest = max(longest, lengths[m], last)
    # An odd number of cache lines per row: rows a power of two apart would fight for the same sets of the cache.
    scores = np.empty((most_rows * group, -(-longest // PANEL) * PANEL + 16), np.float32)
    mixed = np.empty((most_rows * group, width), np.float32)
    totals, lanes = np.empty(most_rows * group, np.float32), np.empty(_LANES, np.float32)
    score_bytes, head_bytes = scores.shape[1] * 4, head_dim * 4
    # Signed, for Numba adds an unsigned to a signed integer in floating point.
    scores_base, mixed_base = np.int64(scores.ctypes.data), np.int64(mixed.ctypes.data)
    keys_base, values_base = np.int64(keys.ctypes.data), np.int64(values.ctypes.data)
    keys_bytes, values_bytes = head_dim * PANEL * 4, PANEL * width * 4
    first = first_row
    while first < last_row:
        sequence, stop, span = sequences[first], first, 1
        while stop < last_row and stop - first < most_rows and sequences[stop] == sequence:
            last = ancestors[stop, num_ancestors[stop] - 1] + 1 if num_ancestors[stop] > 0 else 0
            span = max(span, lengths[stop], last)
            stop += 1
        count = (stop - first) * group
        for g in range(first_head, last_head):
            asked = np.int64(queries[g, first * group :].ctypes.data)
            for p in range(-(-span // PANEL)):
                panel = keys_base + (tables[sequence, p] * num_kv_heads + g) * keys_bytes
                target = scores_base + p * PANEL * 4
                _multiply_panel(count, asked, head_bytes, panel, PANEL * 4, head_dim, target, score_bytes, 0)
            for row in range(count):
                m = first + row // group
                totals[row] = mask_exp(scores[row, :span], lengths[m], ancestors[m], num_ancestors[m], lanes)
            for p in range(-(-span // PANEL)):
                weights, steps = scores_base + p * PANEL * 4, min(PANEL, span - p * PANEL)
                held = values_base + (tables[sequence, p] * num_kv_heads + g) * values_bytes
                for d in range(0, width, PANEL):
                    panel, target = held + d * 4, mixed_base + d * 4
                    _multiply_panel(count, weights, score_bytes, panel, width * 4, steps, target, width * 4, p)
            for row in range(count):
                inverse = np.float32(1.0) / totals[row]
                base = (g * group + row % group) * head_dim
                for d in range(head_dim):
                    out[first + row // group, base + d] = mixed[row, d] * inverse
        first = stop


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
        sequences: int64 ``[M]``, ascending.
        lengths: int64 ``[M]``, slots of the prefix.
        ancestors: int64 ``[M, A]``, further slots, ascending and beyond the prefix.
        num_ancestors: int64 ``[M]``, how many of them count.
        out: float32 ``[M, G group D]``, written.
    """
    num_rows, num_heads = len(sequences), queries.shape[0]
    _attend_part(
        queries, keys, values, tables, sequences, lengths, ancestors, num_ancestors, out, 0, num_rows, 0, num_heads
    )


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
    for thread in prange(num_threads):
        if num_rows >= 2 * num_threads:
            first_row, last_row = thread * num_rows // num_threads, (thread + 1) * num_rows // num_threads
            first_head, last_head = 0, num_heads
        else:
            first_row, last_row = 0, num_rows
            first_head, last_head = thread * num_heads // num_threads, (thread + 1) * num_heads // num_threads
        _attend_part(
            queries, keys, values, tables, sequences, lengths, ancestors, num_ancestors, out,
            first_row, last_row, first_head, last_head,
        )  # fmt: skip


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
