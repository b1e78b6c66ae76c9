"""Where the blocks of a pool lie: anywhere, for a model that reads block tables; else in the row of who holds them.

Pure Python, no model. A model without block tables has a row of slots per sequence, and block i of a text lies at
place i of the row. A text that others hold is copied from their row, and what a row held is lost when it is given away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

_NOTHING: Final = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class RowCopy:
    """Blocks to be copied from row to row, before the next pass.

    Attributes:
        source: Row that holds them.
        target: Row that gets them.
        first: Place of the first block in both.
        last: Place after the last one.
    """

    source: int
    target: int
    first: int
    last: int


class Placement(Protocol):
    """Gives blocks their places."""

    def choose(self, rows: Sequence[int], found: Sequence[int]) -> int:
        """Return which of some free rows suits a text whose first blocks are these; the one left longest ago first."""
        ...

    def place(self, row: int, blocks: Sequence[int], *, num_found: int) -> list[int]:
        """Give a free row to a text, the first ``num_found`` blocks of which are held somewhere.

        Returns:
            Blocks whose text is now held nowhere.
        """
        ...

    def extend(self, row: int, blocks: Sequence[int]) -> None:
        """Add empty blocks to a row."""
        ...

    def take_copies(self) -> list[RowCopy]:
        """Return what is to be copied since the last call, in this order."""
        ...


class PagePlacement:
    """Of a model with block tables: a block's number is its place."""

    def choose(self, rows: Sequence[int], found: Sequence[int]) -> int:
        """Return any."""
        return rows[0]

    def place(self, row: int, blocks: Sequence[int], *, num_found: int) -> list[int]:
        """Nothing is lost."""
        return []

    def extend(self, row: int, blocks: Sequence[int]) -> None:
        """Nothing to do."""

    def take_copies(self) -> list[RowCopy]:
        """Nothing is copied."""
        return []


class RowPlacement:
    """Of a model with a row of slots per sequence.

    Args:
        num_rows: Sequences of its cache.
    """

    def __init__(self, num_rows: int) -> None:
        self._contents: list[list[int]] = [[] for _ in range(num_rows)]
        self._rows: dict[int, set[int]] = {}
        self._copies: list[RowCopy] = []

    def choose(self, rows: Sequence[int], found: Sequence[int]) -> int:
        """Return a row that holds the text already, else the first."""
        holding = (row for row in rows if found and self._contents[row][: len(found)] == list(found))
        return next(holding, rows[0])

    def place(self, row: int, blocks: Sequence[int], *, num_found: int) -> list[int]:
        """Copy what is found elsewhere; what the row held beyond it is lost."""
        found, before = blocks[:num_found], set(self._contents[row]) - {_NOTHING}
        for place, block in enumerate(found):
            if row not in self._rows[block]:
                self._copy(min(self._rows[block]), row, place)
        for block in before.difference(found):
            self._rows[block].discard(row)
        for block in found:
            self._rows[block].add(row)
        self._contents[row] = list(found)
        self.extend(row, blocks[num_found:])
        return [block for block in before if not self._rows[block]]

    def extend(self, row: int, blocks: Sequence[int]) -> None:
        """Put blocks at the row's end; what they held elsewhere is no longer theirs."""
        for block in blocks:
            for other in self._rows.get(block, set[int]()):
                self._contents[other][self._contents[other].index(block)] = _NOTHING
            self._rows[block] = {row}
        self._contents[row] += blocks

    def _copy(self, source: int, target: int, place: int) -> None:
        last = self._copies[-1] if self._copies else None
        first = place
        if last is not None and (last.source, last.target, last.last) == (source, target, place):
            first = self._copies.pop().first
        self._copies.append(RowCopy(source=source, target=target, first=first, last=place + 1))

    def take_copies(self) -> list[RowCopy]:
        """Return the copies."""
        copies, self._copies = self._copies, []
        return copies
