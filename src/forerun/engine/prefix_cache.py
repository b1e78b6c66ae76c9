"""Which sequences of the cache hold which beginnings of texts: known by hashes of whole blocks of accepted tokens.

Pure Python. A block's hash covers all tokens before it, so equal hashes mean equal texts from the start, and only
tokens that were accepted and computed are ever entered: what a rejected draft left behind is in no block.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise

BLOCK_TOKENS = 16
"""Tokens per block: a prefix is found in whole blocks."""
_DIGEST_BYTES = 16


def block_hashes(token_ids: Sequence[int]) -> list[bytes]:
    """Return the hash of each whole block of a text, each covering the text from its start.

    Args:
        token_ids: The text; tokens after the last whole block don't count.
    """
    hashes: list[bytes] = []
    before = b""
    ends = range(0, len(token_ids) + 1, BLOCK_TOKENS)
    for first, last in pairwise(ends):
        block = array("q", token_ids[first:last]).tobytes()
        before = blake2b(before + block, digest_size=_DIGEST_BYTES).digest()
        hashes.append(before)
    return hashes


class PrefixCache:
    """Remembers the whole blocks that each sequence holds from its start."""

    def __init__(self) -> None:
        self._blocks: dict[int, list[bytes]] = {}
        self._holders: dict[bytes, set[int]] = {}

    def hold(self, sequence: int, hashes: Sequence[bytes]) -> None:
        """Take note of what a sequence holds now, in place of what it held before."""
        before = self._blocks.get(sequence, [])
        num_same = num_equal(before, hashes)
        for hashed in before[num_same:]:
            holders = self._holders[hashed]
            holders.discard(sequence)
            if not holders:
                del self._holders[hashed]
        for hashed in hashes[num_same:]:
            self._holders.setdefault(hashed, set()).add(sequence)
        self._blocks[sequence] = list(hashes)

    def num_held_tokens(self, sequence: int, hashes: Sequence[bytes]) -> int:
        """Return how many tokens of a text a sequence holds from its start, in whole blocks."""
        return BLOCK_TOKENS * num_equal(self._blocks.get(sequence, []), hashes)

    def longest(self, hashes: Sequence[bytes]) -> tuple[int, int]:
        """Return a sequence that holds the most tokens of a text from its start, and how many; (-1, 0) for none."""
        for num_blocks in range(len(hashes), 0, -1):
            holders = self._holders.get(hashes[num_blocks - 1])
            if holders:
                return min(holders), BLOCK_TOKENS * num_blocks
        return -1, 0

    def check_integrity(self) -> None:
        """Assert that both tables say the same."""
        listed = {(sequence, hashed) for sequence, blocks in self._blocks.items() for hashed in blocks}
        indexed = {(sequence, hashed) for hashed, holders in self._holders.items() for sequence in holders}
        assert listed == indexed, f"the tables of the prefix cache differ by {listed ^ indexed}"


def num_equal(some: Sequence[bytes], others: Sequence[bytes]) -> int:
    """Return the length of the common beginning."""
    for index, (one, other) in enumerate(zip(some, others, strict=False)):
        if one != other:
            return index
    return min(len(some), len(others))
