"""An int8 matrix product for a few rows, written for AVX-512 VNNI and compiled by Numba.

The general libraries spend 40-50 microseconds per call before they multiply; a decoder calls 121 times per token. Here
the weight streams once through the registers, 32 outputs by 4 inputs per step, against up to 12 rows held in
accumulators. Sums are integers: a row's result does not depend on the rows beside it.
"""

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, prange, types
from numba.extending import intrinsic

MAX_ROWS = 12
"""Rows per register block: 24 of the 32 vector registers accumulate."""
PANEL = 32
"""Outputs per step, two vectors of 16."""
_VECTOR = ir.VectorType(ir.IntType(32), 16)
_BYTES = ir.VectorType(ir.IntType(8), 64)
_FLOATS = ir.VectorType(ir.FloatType(), 16)
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_PREFETCH_BYTES = 2048
"""How far ahead of the products the weight is asked for; the stream stops at no panel's end."""


def is_supported() -> bool:
    """Say whether this CPU has the instructions (AVX-512F, BW and VNNI)."""
    features = binding.get_host_cpu_features()
    return all(features.get(name, False) for name in ("avx512f", "avx512bw", "avx512vnni"))


@njit(cache=True, nogil=True, error_model="numpy")
def pack_weight(weight: np.ndarray) -> np.ndarray:
    """Reorder a weight for :func:`multiply`.

    Args:
        weight: int8 ``[N, K]``.

    Returns:
        int8 ``[ceil(N / 32), ceil(K / 4), 2, 16, 4]``, zero-padded, on whole lines of the cache.
    """
    outputs, inputs = weight.shape
    panels, steps = -(-outputs // PANEL), -(-inputs // 4)
    held = np.zeros(panels * steps * 128 + 64, np.int8)
    start = -np.int64(held.ctypes.data) % 64
    packed = held[start : start + panels * steps * 128].reshape((panels, steps, 2, 16, 4))
    for n in range(outputs):
        lane = packed[n // PANEL, :, n % PANEL // 16, n % 16]
        for k in range(inputs):
            lane[k // 4, k % 4] = weight[n, k]
    return packed


def _emit_block(builder: Any, num_rows: int, weight: Any, rows: Any, stride: Any, steps: Any, out: Any) -> None:
    """Emit the loop over inputs for ``num_rows`` rows and one panel; store int32 ``[num_rows, 32]`` at ``out``."""
    operand = _BYTES if binding.llvm_version_info[0] >= 22 else _VECTOR
    dot = builder.module.declare_intrinsic(
        "llvm.x86.avx512.vpdpbusd.512", fnty=ir.FunctionType(_VECTOR, (_VECTOR, operand, operand))
    )
    before, loop = builder.block, builder.append_basic_block("dot.loop")
    after = builder.append_basic_block("dot.end")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(_INT64)
    step.add_incoming(ir.Constant(_INT64, 0), before)
    sums = [builder.phi(_VECTOR) for _ in range(2 * num_rows)]
    zero = ir.Constant(_VECTOR, None)
    offset = builder.mul(step, ir.Constant(_INT64, 128))

    def load(address: Any, kind: Any, align: int) -> Any:
        return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)

    ahead = builder.inttoptr(
        builder.add(weight, builder.add(offset, ir.Constant(_INT64, _PREFETCH_BYTES))), ir.IntType(8).as_pointer()
    )
    prefetch = builder.module.declare_intrinsic(
        "llvm.prefetch", [ahead.type], ir.FunctionType(ir.VoidType(), (ahead.type, _INT32, _INT32, _INT32))
    )
    for half in (0, 64):
        line = builder.gep(ahead, [ir.Constant(_INT64, half)])
        builder.call(prefetch, (line, ir.Constant(_INT32, 0), ir.Constant(_INT32, 3), ir.Constant(_INT32, 1)))
    halves = [
        load(builder.add(weight, builder.add(offset, ir.Constant(_INT64, 64 * half))), operand, 1) for half in (0, 1)
    ]
    column = builder.add(rows, builder.mul(step, ir.Constant(_INT64, 4)))
    updated = []
    for row in range(num_rows):
        four = load(builder.add(column, builder.mul(stride, ir.Constant(_INT64, row))), _INT32, 1)
        lane = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), four, ir.Constant(_INT32, 0))
        spread = builder.shuffle_vector(lane, lane, ir.Constant(ir.VectorType(_INT32, 16), [0] * 16))
        spread = builder.bitcast(spread, operand) if operand is _BYTES else spread
        for half in (0, 1):
            sums[2 * row + half].add_incoming(zero, before)
            updated.append(builder.call(dot, (sums[2 * row + half], spread, halves[half])))
    for place, value in zip(sums, updated, strict=True):
        place.add_incoming(value, loop)
    following = builder.add(step, ir.Constant(_INT64, 1))
    step.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
    builder.position_at_end(after)
    for index, value in enumerate(updated):
        target = builder.add(out, ir.Constant(_INT64, 64 * index))
        builder.store(value, builder.inttoptr(target, _VECTOR.as_pointer()), align=4)


def _emit_finish(builder: Any, sums: Any, offset: Any, weight_scale: Any, out: Any, scales: list[Any]) -> None:
    """Emit ``out = sum_l (sums[l] - offset) * scales[l] * weight_scale`` for one row and one whole panel.

    ``sums`` holds the address of each level's int32 sums; no two operations may be contracted, so every row is rounded
    alike whichever block it was summed in.
    """

    def load(address: Any, half: int, kind: Any) -> Any:
        place = builder.add(address, ir.Constant(_INT64, 64 * half))
        return builder.load(builder.inttoptr(place, kind.as_pointer()), align=4)

    def spread(value: Any) -> Any:
        lane = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(_INT32, 0))
        return builder.shuffle_vector(lane, lane, ir.Constant(ir.VectorType(_INT32, 16), [0] * 16))

    spread_scales = [spread(scale) for scale in scales]
    for half in (0, 1):
        shift = load(offset, half, _VECTOR)
        total = None
        for address, scale in zip(sums, spread_scales, strict=True):
            level = builder.sitofp(builder.sub(load(address, half, _VECTOR), shift), _FLOATS)
            term = builder.fmul(level, scale)
            total = term if total is None else builder.fadd(total, term)
        result = builder.fmul(total, load(weight_scale, half, _FLOATS))
        target = builder.add(out, ir.Constant(_INT64, 64 * half))
        builder.store(result, builder.inttoptr(target, _FLOATS.as_pointer()), align=4)


@intrinsic
def _finish_one(typingctx: Any, sums: Any, offset: Any, weight_scale: Any, out: Any, scale: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, offset, weight_scale, out, scale = args
        _emit_finish(builder, [sums], offset, weight_scale, out, [scale])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp, types.float32), codegen


@intrinsic
def _finish_two(
    typingctx: Any, high: Any, low: Any, offset: Any, weight_scale: Any, out: Any, scale: Any, low_scale: Any
) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        high, low, offset, weight_scale, out, scale, low_scale = args
        _emit_finish(builder, [high, low], offset, weight_scale, out, [scale, low_scale])
        return context.get_dummy_value()

    arguments = (types.intp,) * 5 + (types.float32,) * 2
    return types.void(*arguments), codegen


def _block_function(num_rows: int) -> Any:
    @intrinsic
    def block(typingctx: Any, weight: Any, rows: Any, stride: Any, steps: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _emit_block(builder, num_rows, *args)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp, types.intp, types.intp), codegen

    return block


_block_1, _block_2, _block_4, _block_6, _block_8, _block_10, _block_12 = (
    _block_function(num_rows) for num_rows in (1, 2, 4, 6, 8, 10, 12)
)


@njit(cache=True, nogil=True, error_model="numpy")
def _multiply_panels(
    packed: np.ndarray,
    weight_scale: np.ndarray,
    offset: np.ndarray,
    rows: np.ndarray,
    row_scale: np.ndarray,
    low_scale: float,
    out: np.ndarray,
    first_panel: int,
    last_panel: int,
) -> None:
    """Multiply by the panels from ``first_panel`` up to ``last_panel``; see :func:`multiply`."""
    num_rows, num_outputs = out.shape
    total = rows.shape[0]
    sums = np.empty((total + MAX_ROWS, PANEL), np.int32)
    stride, steps = rows.shape[1], packed.shape[1]
    # Signed, for Numba adds an unsigned to a signed integer in floating point.
    base, panel_bytes = np.int64(packed.ctypes.data), packed.shape[1] * 128
    rows_base, sums_base = np.int64(rows.ctypes.data), np.int64(sums.ctypes.data)
    out_base, offset_base = np.int64(out.ctypes.data), np.int64(offset.ctypes.data)
    scale_base, relative = np.int64(weight_scale.ctypes.data), np.float32(low_scale)
    for panel in range(first_panel, last_panel):
        weight = base + panel * panel_bytes
        done = 0
        while done < total:
            left = total - done
            address, target = rows_base + done * stride, sums_base + done * PANEL * 4
            if left >= 12:
                _block_12(weight, address, stride, steps, target)
                done += 12
            elif left >= 10:
                _block_10(weight, address, stride, steps, target)
                done += 10
            elif left >= 8:
                _block_8(weight, address, stride, steps, target)
                done += 8
            elif left >= 6:
                _block_6(weight, address, stride, steps, target)
                done += 6
            elif left >= 4:
                _block_4(weight, address, stride, steps, target)
                done += 4
            elif left >= 2:
                _block_2(weight, address, stride, steps, target)
                done += 2
            else:
                _block_1(weight, address, stride, steps, target)
                done += 1
        first = panel * PANEL
        width = min(PANEL, num_outputs - first)
        if width == PANEL:
            for m in range(num_rows):
                scale, high = row_scale[m], sums_base + m * PANEL * 4
                target = out_base + (m * num_outputs + first) * 4
                shifts, scales = offset_base + first * 4, scale_base + first * 4
                # Numba passes the typing context, which pyright misses.
                if total > num_rows:
                    low = high + num_rows * PANEL * 4
                    _finish_two(high, low, shifts, scales, target, scale, scale * relative)  # pyright: ignore[reportCallIssue]
                else:
                    _finish_one(high, shifts, scales, target, scale)  # pyright: ignore[reportCallIssue]
            continue
        for m in range(num_rows):
            scale = row_scale[m]
            if total > num_rows:
                low = scale * np.float32(low_scale)
                for j in range(width):
                    high_sum, low_sum = sums[m, j] - offset[first + j], sums[num_rows + m, j] - offset[first + j]
                    out[m, first + j] = (np.float32(high_sum) * scale + np.float32(low_sum) * low) * weight_scale[
                        first + j
                    ]
            else:
                for j in range(width):
                    out[m, first + j] = np.float32(sums[m, j] - offset[first + j]) * scale * weight_scale[first + j]


@njit(cache=True, nogil=True, error_model="numpy")
def multiply(
    packed: np.ndarray,
    weight_scale: np.ndarray,
    offset: np.ndarray,
    rows: np.ndarray,
    row_scale: np.ndarray,
    low_scale: float,
    out: np.ndarray,
) -> None:
    """Multiply quantised rows by a packed weight.

    Args:
        packed: From :func:`pack_weight`.
        weight_scale: float32 ``[N]``.
        offset: int32 ``[N]``, zero point of the rows times the sum of each weight row.
        rows: uint8 ``[levels M, K]``, K a multiple of 4; a second level holds remainders.
        row_scale: float32 ``[M]``.
        low_scale: Scale of the second level relative to the first.
        out: float32 ``[M, N]``, written: ``row_scale * weight_scale * (high + low * low_scale)``.
    """
    _multiply_panels(packed, weight_scale, offset, rows, row_scale, low_scale, out, 0, packed.shape[0])


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def multiply_in_threads(
    packed: np.ndarray,
    weight_scale: np.ndarray,
    offset: np.ndarray,
    rows: np.ndarray,
    row_scale: np.ndarray,
    low_scale: float,
    out: np.ndarray,
    num_threads: int,
) -> None:
    """As :func:`multiply`, the panels shared over threads; the result is the same bit for bit."""
    num_panels = packed.shape[0]
    for thread in prange(num_threads):
        first, last = thread * num_panels // num_threads, (thread + 1) * num_panels // num_threads
        _multiply_panels(packed, weight_scale, offset, rows, row_scale, low_scale, out, first, last)
