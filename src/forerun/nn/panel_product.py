"""Products of a few rows with a panel of 32 columns, in vectors written out for LLVM.

Every sum is a chain of fused multiply-adds, one step after the other, so a row's result does not depend on the rows
beside it. The panel is loaded once for up to twelve rows.
"""

from typing import Any

from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic

PANEL = 32
"""Columns of a panel: two vectors of 16 floats."""
_MAX_BLOCK = 12 if binding.get_host_cpu_features().get("avx512f", False) else 3
"""Rows held in registers: 24 of 32 vectors accumulate; without AVX-512 a vector takes two of 16 registers."""
_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, 16)


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
    ahead: Any,
) -> None:
    """Emit ``out[r, :32] = sum over steps of rows[r, step] * panel[step, :32]``; strides are in bytes.

    Where ``goes_on`` is not 0, the sum begins with what ``out`` holds. Each step asks for the same line of the panel at
    ``ahead``.
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
    coming = at(ahead, builder.mul(step, panel_bytes))
    for half in (0, 1):
        wanted = builder.inttoptr(at(coming, ir.Constant(_INT64, 64 * half)), ir.IntType(8).as_pointer())
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [wanted.type], ir.FunctionType(ir.VoidType(), (wanted.type, _INT32, _INT32, _INT32))
        )
        builder.call(prefetch, (wanted, ir.Constant(_INT32, 0), ir.Constant(_INT32, 3), ir.Constant(_INT32, 1)))
    column = at(rows, builder.mul(step, ir.Constant(_INT64, 4)))
    updated: list[Any] = []
    for row in range(num_rows):
        value = load(at(column, builder.mul(row_bytes, ir.Constant(_INT64, row))), _FLOAT)
        lane = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(_INT32, 0))
        spread = builder.shuffle_vector(lane, lane, ir.Constant(ir.VectorType(_INT32, 16), [0] * 16))
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
        ahead: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _emit_block(builder, num_rows, *args)
            return context.get_dummy_value()

        return types.void(*(types.intp,) * 9), codegen

    return block


_block_1, _block_2, _block_3, _block_6, _block_12 = (_block_function(num_rows) for num_rows in (1, 2, 3, 6, 12))


@njit(cache=True, nogil=True, error_model="numpy")
def multiply_panel(
    num_rows: Any,
    rows: Any,
    row_bytes: Any,
    panel: Any,
    panel_bytes: Any,
    steps: Any,
    out: Any,
    out_bytes: Any,
    goes_on: Any,
    ahead: Any,
) -> None:
    """Multiply rows by one panel: ``out[r, :32] = sum over steps of rows[r, step] * panel[step, :32]``.

    Args:
        num_rows: Rows.
        rows: Address of float32 rows, at least ``steps`` long.
        row_bytes: From a row to the next.
        panel: Address of float32 lines of at least 32.
        panel_bytes: From a line to the next.
        steps: Lines, at least 1.
        out: Address of float32 rows, written.
        out_bytes: From a row to the next.
        goes_on: Not 0: the sums begin with what ``out`` holds.
        ahead: Address of the panel that is wanted next, so that memory works meanwhile; any address will do.
    """
    done = 0
    while done < num_rows:
        left = num_rows - done
        address, target = rows + done * row_bytes, out + done * out_bytes
        if left >= 12 and _MAX_BLOCK >= 12:
            _block_12(address, row_bytes, panel, panel_bytes, steps, target, out_bytes, goes_on, ahead)
            done += 12
        elif left >= 6 and _MAX_BLOCK >= 6:
            _block_6(address, row_bytes, panel, panel_bytes, steps, target, out_bytes, goes_on, ahead)
            done += 6
        elif left >= 3:
            _block_3(address, row_bytes, panel, panel_bytes, steps, target, out_bytes, goes_on, ahead)
            done += 3
        elif left >= 2:
            _block_2(address, row_bytes, panel, panel_bytes, steps, target, out_bytes, goes_on, ahead)
            done += 2
        else:
            _block_1(address, row_bytes, panel, panel_bytes, steps, target, out_bytes, goes_on, ahead)
            done += 1
