"""Where the slots of each sequence lie: in blocks that sequences may share."""

from collections.abc import Sequence

import numpy as np

from forerun.core.errors import RequestError
from forerun.core.rows import Rows
from forerun.models.cache_bounds import check_cache_size, check_limit


class BlockTables:
    """The block tables of a cache; at first each sequence has blocks of its own for its whole capacity.

    Args:
        num_sequences: Sequences.
        capacity: Slots per sequence, a multiple of ``block_tokens``.
        block_tokens: Slots per block.

    Attributes:
        num_blocks: Blocks of the cache: as many as all sequences can use.
        blocks: int64 ``[num_sequences, capacity / block_tokens]``, the block of each part of a sequence.

    Raises:
        ConfigError: A number is below 1.
    """

    def __init__(self, *, num_sequences: int, capacity: int, block_tokens: int) -> None:
        check_cache_size(num_sequences=num_sequences, capacity=capacity)
        length = capacity // block_tokens
        self.num_sequences, self.block_tokens, self.num_blocks = num_sequences, block_tokens, num_sequences * length
        self.blocks = np.arange(self.num_blocks, dtype=np.int64).reshape(num_sequences, length)
        self._num_slots = np.full(num_sequences, capacity, np.int64)

    def set(self, sequence: int, blocks: Sequence[int]) -> None:
        """As :meth:`forerun.core.paging.PagedModel.set_blocks`."""
        check_limit("sequence", np.array([sequence]), self.num_sequences)
        check_limit("block", np.array(blocks, np.int64), self.num_blocks)
        if len(blocks) > self.blocks.shape[1]:
            raise RequestError(f"{len(blocks)} blocks for a sequence: it can use {self.blocks.shape[1]} at most")
        self.blocks[sequence, : len(blocks)] = blocks
        self._num_slots[sequence] = len(blocks) * self.block_tokens

    def places(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Return the block and the slot within it that each row writes to.

        Args:
            rows: Checked against the capacity.

        Raises:
            RequestError: A row writes, or sees, beyond its sequence's blocks.
        """
        held = self._num_slots[rows.sequences]
        last = np.maximum(rows.slots + 1, rows.lengths)
        if rows.num_ancestors.any():
            last = np.maximum(last, np.where(rows.num_ancestors > 0, rows.ancestors.max(axis=1) + 1, 0))
        self._check_held(last - held)
        return self.blocks[rows.sequences, rows.slots // self.block_tokens], rows.slots % self.block_tokens

    def order(self, rows: Rows) -> np.ndarray | None:
        """Return an order in which rows of sequences that begin with the same blocks are side by side.

        Returns:
            int64 ``[M]``, the rows in that order; ``None`` where they may stay as they are.
        """
        sequences = np.unique(rows.sequences)
        if len(sequences) < 3 or len(np.unique(self.blocks[sequences, 0])) == len(sequences):
            return None
        num_places = -(-int(rows.lengths.max()) // self.block_tokens)
        begin_alike = sorted(sequences.tolist(), key=lambda sequence: self.blocks[sequence, :num_places].tobytes())
        ranks = np.empty(self.num_sequences, np.int64)
        ranks[begin_alike] = np.arange(len(begin_alike))
        return np.argsort(ranks[rows.sequences], kind="stable")

    def table(self, sequence: int, slots: np.ndarray) -> np.ndarray:
        """Return the blocks of a sequence, int64 ``[capacity / block_tokens]``, which must hold some slots.

        Raises:
            RequestError: They don't.
        """
        if slots.size:
            self._check_held(slots.max(keepdims=True) + 1 - self._num_slots[sequence])
        return self.blocks[sequence]

    @staticmethod
    def _check_held(missing: np.ndarray) -> None:
        if (missing > 0).any():
            raise RequestError(f"{missing.max()} slots beyond the blocks of a sequence: set more blocks for it")
