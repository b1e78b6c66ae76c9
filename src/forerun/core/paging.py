"""The seam of a language model whose cache is made of blocks that sequences share."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from forerun.core.protocols import LanguageModel


@runtime_checkable
class PagedModel(LanguageModel, Protocol):
    """A language model that finds the slots of a sequence in a table of blocks.

    A fresh one gives each sequence blocks of its own for its whole capacity.

    Attributes:
        block_tokens: Slots per block.
        num_blocks: Blocks of the cache, numbered from 0.
    """

    block_tokens: int
    num_blocks: int

    def set_blocks(self, sequence: int, blocks: Sequence[int]) -> None:
        """Let the slots of a sequence lie in these blocks, one after the other; what they hold stays as it is.

        Sequences may share blocks. A row that reaches beyond its sequence's blocks is refused as one beyond the
        capacity is.

        Raises:
            RequestError: The sequence or a block lies outside the cache, or there are more blocks than it can use.
        """
        ...
