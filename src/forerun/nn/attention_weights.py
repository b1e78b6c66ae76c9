"""From the scores of a row to its attention weights, in vectors written out for LLVM.

What is summed in which order is written down here, and does not change with what a compiler makes of the kernel that
this is inlined in.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from forerun.nn.row_kernels import exp

LANES = 16
"""Scores of a vector; a row is read to the end of its last one."""
_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR, _INTEGERS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT32, LANES)
_EXP_TERMS = [1 / math.factorial(order) for order in range(6, -1, -1)]


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    lane = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(lane, lane, ir.Constant(_INTEGERS, [0] * LANES))


def _constant(value: float) -> Any:
    return ir.Constant(_VECTOR, [float(np.float32(value))] * LANES)


def _emit_exp(builder: Any, x: Any) -> Any:
    """Emit e to the power of a vector of numbers that are not above 0; as :func:`forerun.nn.row_kernels.exp`."""
    unary, ternary = ir.FunctionType(_VECTOR, (_VECTOR,)), ir.FunctionType(_VECTOR, (_VECTOR, _VECTOR, _VECTOR))
    floor = builder.module.declare_intrinsic("llvm.floor.v16f32", fnty=unary)
    fma = builder.module.declare_intrinsic("llvm.fma.v16f32", fnty=ternary)
    least = _constant(-87.0)
    x = builder.select(builder.fcmp_ordered(">", x, least), x, least)
    n = builder.call(floor, (builder.call(fma, (x, _constant(math.log2(math.e)), _constant(0.5))),))
    r = builder.call(fma, (n, _constant(-math.log(2)), x))
    p = _constant(_EXP_TERMS[0])
    for term in _EXP_TERMS[1:]:
        p = builder.call(fma, (p, r, _constant(term)))
    exponent = builder.add(builder.fptosi(n, _INTEGERS), ir.Constant(_INTEGERS, [127] * LANES))
    bits = builder.shl(exponent, ir.Constant(_INTEGERS, [23] * LANES))
    return builder.fmul(p, builder.bitcast(bits, _VECTOR))


def _emit_pass(builder: Any, scores: Any, length: Any, begun: Any, advance: Any) -> Any:
    """Emit a loop over the vectors of ``length`` scores, at least one.

    Args:
        builder: Of LLVM.
        scores: Address.
        length: Of the row.
        begun: What the loop carries at first, a vector.
        advance: From what it carries, a vector's address, the vector and which of its lanes are within the length to
            what it carries on.

    Returns:
        What it carries in the end.
    """
    before, loop = builder.block, builder.append_basic_block("row.loop")
    after = builder.append_basic_block("row.end")
    within = _splat(builder, builder.trunc(length, _INT32), _INTEGERS)
    builder.branch(loop)
    builder.position_at_end(loop)
    place, carried = builder.phi(_INT64), builder.phi(_VECTOR)
    place.add_incoming(ir.Constant(_INT64, 0), before)
    carried.add_incoming(begun, before)
    offset = builder.add(scores, builder.mul(place, ir.Constant(_INT64, 4)))
    address = builder.inttoptr(offset, _VECTOR.as_pointer())
    lanes = builder.add(
        _splat(builder, builder.trunc(place, _INT32), _INTEGERS), ir.Constant(_INTEGERS, list(range(LANES)))
    )
    is_seen = builder.icmp_signed("<", lanes, within)
    updated = advance(carried, address, builder.load(address, align=4), is_seen)
    carried.add_incoming(updated, loop)
    following = builder.add(place, ir.Constant(_INT64, LANES))
    place.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, length), loop, after)
    builder.position_at_end(after)
    return updated


def _emit_folded(builder: Any, vector: Any, join: Any) -> Any:
    """Emit the halves of a vector joined lane by lane, and so on down to one number."""
    width = LANES
    while width > 1:
        width //= 2
        halves = [
            builder.shuffle_vector(
                vector, vector, ir.Constant(ir.VectorType(_INT32, width), list(range(start, start + width)))
            )
            for start in (0, width)
        ]
        vector = join(*halves)
    return builder.extract_element(vector, ir.Constant(_INT32, 0))


@intrinsic
def _highest(typingctx: Any, scores: Any, length: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scores, length = args
        lowest = ir.Constant(_VECTOR, [float("-inf")] * LANES)

        def larger(one: Any, other: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", one, other), one, other)

        def advance(carried: Any, address: Any, vector: Any, is_seen: Any) -> Any:
            return larger(builder.select(is_seen, vector, lowest), carried)

        return _emit_folded(builder, _emit_pass(builder, scores, length, lowest, advance), larger)

    return types.float32(types.intp, types.intp), codegen


@intrinsic
def _weigh(typingctx: Any, scores: Any, length: Any, peak: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scores, length, peak = args
        zero, highest = ir.Constant(_VECTOR, None), _splat(builder, peak, _VECTOR)

        def advance(carried: Any, address: Any, vector: Any, is_seen: Any) -> Any:
            weight = builder.select(is_seen, _emit_exp(builder, builder.fsub(vector, highest)), zero)
            builder.store(weight, address, align=4)
            return builder.fadd(carried, weight)

        return _emit_folded(builder, _emit_pass(builder, scores, length, zero, advance), builder.fadd)

    return types.float32(types.intp, types.intp, types.float32), codegen


@njit(cache=True, nogil=True, error_model="numpy")
def mask_exp(scores: Any, length: Any, ancestors: Any, num_ancestors: Any, held: Any) -> Any:
    """Turn a row of scores into unnormalised attention weights in place; slots the row may not see get exactly 0.

    Args:
        scores: float32 ``[L]``, L a multiple of :data:`LANES`.
        length: Slots of the prefix that the row sees.
        ancestors: int64, further slots, ascending and beyond the prefix.
        num_ancestors: How many of them count; at least 1 where ``length`` is 0.
        held: float32, at least as many, written.

    Returns:
        The sum of the weights: of each lane of the prefix's vectors, these folded in halves, then ancestor by ancestor.
    """
    address = np.int64(scores.ctypes.data)  # signed, for Numba adds an unsigned to a signed integer in floating point
    # Numba passes the typing context, which pyright misses.
    peak = _highest(address, length) if length > 0 else scores[ancestors[0]]  # pyright: ignore[reportCallIssue]
    for a in range(num_ancestors):
        held[a] = scores[ancestors[a]]
        peak = max(peak, held[a])
    total = np.float32(0.0)
    place = 0
    if length > 0:
        total = _weigh(address, length, peak)  # pyright: ignore[reportCallIssue]
        place = -(-length // LANES) * LANES
    for j in range(place, len(scores)):
        scores[j] = np.float32(0.0)
    for a in range(num_ancestors):
        weight = exp(held[a] - peak)
        total += weight
        scores[ancestors[a]] = weight
    return total
