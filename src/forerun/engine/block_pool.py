"""Blocks of the key/value cache: who holds each, and which texts they still hold. Pure Python, no model.

A block has as many holders as sequences whose text lies in it. One without a holder is free, and may keep a text that
is known by its hash until the block is taken for another. A hash covers everything before the block, too, so equal
hashes mean equal texts from the start; only whole blocks of accepted and computed tokens are ever published, so what a
rejected draft left behind is known by no hash.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import islice, pairwise

_DIGEST_BYTES = 16


def block_hashes(token_ids: Sequence[int], *, block_tokens: int, salt: str = "") -> list[bytes]:
    """Return the hash of each whole block of a text, each covering the text from its start.

    Args:
        token_ids: The text; tokens after the last whole block don't count.
        block_tokens: Tokens per block.
        salt: Texts of different salts have different hashes.
    """
    hashes: list[bytes] = []
    before = blake2b(salt.encode(), digest_size=_DIGEST_BYTES).digest() if salt else b""
    ends = range(0, len(token_ids) + 1, block_tokens)
    for first, last in pairwise(ends):
        block = array("q", token_ids[first:last]).tobytes()
        before = blake2b(before + block, digest_size=_DIGEST_BYTES).digest()
        hashes.append(before)
    return hashes


class BlockPool:
    """Counts the holders of each block, and finds blocks by the text they hold.

    Free blocks without a text are taken first, the one that was left last before the others: its memory is in use
    anyway. Then those with a text, the one that was left longest ago first.

    Args:
        num_blocks: Blocks of the cache, numbered from 0.
    """

    def __init__(self, num_blocks: int) -> None:
        self._num_holders = [0] * num_blocks
        self._free = OrderedDict[int, None].fromkeys(range(num_blocks))
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_blocks(self) -> int:
        """All of them."""
        return len(self._num_holders)

    @property
    def num_free(self) -> int:
        """Blocks without a holder."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of the blocks that have a holder."""
        return 1 - self.num_free / self.num_blocks

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """Return the blocks that hold a text from its start, as far as it is held without a gap."""
        found: list[int] = []
        for hashed in hashes:
            block = self._block_of.get(hashed)
            if block is None:
                break
            found.append(block)
        return found

    def num_free_among(self, blocks: Iterable[int]) -> int:
        """Return how many of some blocks have no holder."""
        return sum(self._num_holders[block] == 0 for block in blocks)

    def num_freed_by(self, blocks: Iterable[int]) -> int:
        """Return how many of some blocks would be free without one holder."""
        return sum(self._num_holders[block] == 1 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Add a holder to each of some blocks, for the text that they hold."""
        for block in blocks:
            self._free.pop(block, None)
            self._num_holders[block] += 1

    def take(self, num_blocks: int) -> list[int]:
        """Return blocks for new text, of one holder each; what they held is forgotten.

        Args:
            num_blocks: At most :attr:`num_free`.
        """
        assert num_blocks <= self.num_free, f"{num_blocks} blocks asked for, {self.num_free} are free"
        taken = list(islice(self._free, num_blocks))
        self.forget(taken)
        self.share(taken)
        return taken

    def publish(self, blocks: Sequence[int], hashes: Sequence[bytes]) -> None:
        """Take note of the texts that held blocks hold, one after the other; a text is found in one block only."""
        for block, hashed in zip(blocks, hashes, strict=True):
            if block not in self._hash_of and hashed not in self._block_of:
                self._hash_of[block], self._block_of[hashed] = hashed, block

    def forget(self, blocks: Iterable[int]) -> None:
        """Take note that blocks hold no text that others may use; those that are free are taken next."""
        for block in blocks:
            hashed = self._hash_of.pop(block, None)
            if hashed is not None:
                del self._block_of[hashed]
            if block in self._free:
                self._free.move_to_end(block, last=False)

    def release(self, blocks: Sequence[int]) -> None:
        """Take a holder from each of some blocks, in the order of their text.

        The end of a text is forgotten before its beginning, without which it could not be found.
        """
        for block in reversed(blocks):
            self._num_holders[block] -= 1
            if self._num_holders[block] == 0:
                self._free[block] = None
                self._free.move_to_end(block, last=block in self._hash_of)

    def check_integrity(self, held: Iterable[Sequence[int]] = ()) -> None:
        """Assert that the tables agree with each other and with what the holders say.

        Args:
            held: The blocks of every holder.
        """
        counts = [0] * self.num_blocks
        for blocks in held:
            assert len(set(blocks)) == len(blocks), f"a sequence holds a block twice: {blocks}"
            for block in blocks:
                counts[block] += 1
        assert counts == self._num_holders, "the number of a block's holders is not the number of those who hold it"
        assert {block for block, count in enumerate(counts) if count == 0} == self._free.keys(), "a block is lost"
        assert {hashed: block for block, hashed in self._hash_of.items()} == self._block_of, "hashes and blocks differ"
