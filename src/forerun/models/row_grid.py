"""Rows as a grid of fixed shape: which cells hold a row, what all rows of a sequence see, and what is seen beyond."""

from dataclasses import dataclass

import numpy as np

from forerun.core.rows import Rows

_EXACT_WIDTHS = 9
"""Verifications of up to so many rows get a shape of their own; wider passes are padded to a power of two."""
_LEAST_SPAN = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class GridShape:
    """Sizes of a grid; a graph is recorded for each.

    Attributes:
        num_sequences: N.
        width: R, rows of a sequence.
        num_listed: T, slots beyond the prefix.
        span: Slots that hold every prefix.
        is_dense: Whether they hold all that any row sees, as where no row has ancestors.
    """

    num_sequences: int
    width: int
    num_listed: int
    span: int
    is_dense: bool

    @property
    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays of :class:`RowGrid`."""
        grid = (self.num_sequences, self.width)
        return {
            "token_ids": grid,
            "positions": grid,
            "slots": grid,
            "lengths": grid[:1],
            "listed": (self.num_sequences, self.num_listed),
            "visible": (*grid, self.num_listed),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGrid:
    """Rows laid out in a grid.

    Attributes:
        shape: Its sizes.
        arrays: By name, int64, of the shapes that :attr:`GridShape.array_shapes` says.
        sequences: Sequence of the cache of each of the N.
        cells: Of each row, its place among the N and among the R.
    """

    shape: GridShape
    arrays: dict[str, np.ndarray]
    sequences: np.ndarray
    cells: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, rows: Rows, *, num_sequences: int, num_slots: int, spare_slot: int, is_padded: bool) -> "RowGrid":
        """Lay rows out.

        Args:
            rows: Checked, of ascending sequences.
            num_sequences: Of the cache.
            num_slots: A span is not longer.
            spare_slot: Where cells without a row write to.
            is_padded: Whether the grid holds the first sequences of the cache and has one of few shapes, or just the
                sequences and the width that the rows have.
        """
        is_first = np.ones(len(rows), bool)
        np.not_equal(rows.sequences[1:], rows.sequences[:-1], out=is_first[1:])
        first_rows = is_first.nonzero()[0]
        present, row_group = rows.sequences[first_rows], is_first.cumsum() - 1
        counts = np.bincount(row_group)
        row_sequence, row_place = row_group, np.arange(len(rows)) - first_rows[row_group]
        shared = np.minimum.reduceat(rows.lengths, first_rows)
        width = int(counts.max())
        if is_padded:
            row_sequence, sequences = rows.sequences, np.arange(padded_count(int(present[-1]) + 1, most=num_sequences))
            width = width if width <= _EXACT_WIDTHS else padded_count(width)
            places = present
        else:
            sequences, places = present, np.arange(len(present))
        is_dense = not rows.num_ancestors.any()
        trees: list[np.ndarray] = []
        if is_dense:
            num_beyond = np.maximum.reduceat(rows.lengths, first_rows) - shared
            span = max(1, int(rows.lengths.max()))
        else:
            trees = _listed_slots(rows, shared=shared, first_rows=first_rows, counts=counts)
            num_beyond = np.array([len(slots) for slots in trees])
            span = max(1, int(shared.max()))
        num_listed = max(1, int(num_beyond.max()))
        shape = GridShape(
            num_sequences=len(sequences),
            width=width,
            num_listed=padded_count(num_listed) if is_padded else num_listed,
            span=padded_span(span, num_slots) if is_padded else span,
            is_dense=bool(is_dense),
        )
        arrays = {name: np.zeros(size, np.int64) for name, size in shape.array_shapes.items()}
        cells = (row_sequence, row_place)
        arrays["slots"][:] = spare_slot
        for name, values in (("token_ids", rows.token_ids), ("positions", rows.positions), ("slots", rows.slots)):
            arrays[name][cells] = values
        arrays["lengths"][places] = shared
        if is_dense:
            beyond = np.arange(shape.num_listed)
            slots, is_slot = shared[:, None] + beyond, beyond < num_beyond[:, None]
            arrays["listed"][places] = np.where(is_slot, slots, 0)
            arrays["visible"][cells] = (slots[row_group] < rows.lengths[:, None]) & is_slot[row_group]
        else:
            for place, slots, first, count in zip(places, trees, first_rows, counts, strict=True):
                arrays["listed"][place, : len(slots)] = slots
                of_sequence = slice(first, first + count)
                arrays["visible"][place, :count, : len(slots)] = _seen(rows, of_sequence, slots)
        return cls(shape=shape, arrays=arrays, sequences=sequences, cells=cells)


def padded_count(count: int, *, least: int = 1, most: int | None = None) -> int:
    """Return the least power of two that holds a count, and at least ``least``; at most ``most``."""
    padded = max(least, 1 << (count - 1).bit_length() if count > 1 else 1)
    return padded if most is None else min(padded, most)


def padded_span(num_slots: int, most: int) -> int:
    """Return the span that a recorded pass reads for a prefix of so many slots, at most ``most``."""
    return padded_count(num_slots, least=_LEAST_SPAN, most=most)


def _listed_slots(rows: Rows, *, shared: np.ndarray, first_rows: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Return for each sequence the slots beyond the prefix of all its rows that any of them sees, in a tree."""
    longest = np.maximum.reduceat(rows.lengths, first_rows)
    listed = [np.arange(start, stop) for start, stop in zip(shared, longest, strict=True)]
    is_ancestor = np.arange(rows.ancestors.shape[1]) < rows.num_ancestors[:, None]
    return [
        np.union1d(slots, rows.ancestors[first : first + count][is_ancestor[first : first + count]])
        for slots, first, count in zip(listed, first_rows, counts, strict=True)
    ]


def _seen(rows: Rows, of_sequence: slice, slots: np.ndarray) -> np.ndarray:
    """Return which listed slots each row of a sequence sees."""
    seen = slots < rows.lengths[of_sequence, None]
    for row, (ancestors, count) in enumerate(
        zip(rows.ancestors[of_sequence], rows.num_ancestors[of_sequence], strict=True)
    ):
        if count:
            seen[row] |= np.isin(slots, ancestors[:count])
    return seen
