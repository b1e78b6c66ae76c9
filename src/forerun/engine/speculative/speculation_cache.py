"""The speculation cache: prepared outcomes in memory that drafter and target share.

The drafter writes, the target reads; nothing locks. What a reader may look at is guarded by numbers that the writer
sets last: the round for a whole table, the number of branches for the keys, the depth for the tokens. The drafter
clears a table only after the target has told it the outcome of that round, and the target reads it only before.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from forerun.engine.law import ProcessedLaw
from forerun.engine.outputs import PredictedOutcome

_ROUND: Final = 0
_NUM_BRANCHES: Final = 1
_DEPTH: Final = 2
_DRAFT_ROUND: Final = 3
_DRAFT_LENGTH: Final = 4
_LAWS_ROUND: Final = 5
_HEADER: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheShape:
    """Sizes of the shared memory.

    Attributes:
        num_requests: Requests at a time.
        max_branches: Outcomes per request.
        max_depth: Tokens per outcome.
        law_width: Candidates of a law; 0 where laws are never sent.
    """

    num_requests: int
    max_branches: int
    max_depth: int
    law_width: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole memory."""
        return 8 + self.num_requests * self.bytes_per_request

    @property
    def bytes_per_request(self) -> int:
        """Bytes of one request's part: header, keys, tokens, widths, draft, and laws (count, ids, scores)."""
        integers = _HEADER + 2 * self.max_branches + self.max_branches * self.max_depth + 2 * self.max_depth
        num_bytes = 8 * integers + self.max_depth * (8 + 12 * self.law_width)
        return -(-num_bytes // 8) * 8  # an integer that straddles two words could be read half written


class PreparedOutcome(NamedTuple):
    """What is prepared for an outcome.

    Attributes:
        branch: Its place among the prepared outcomes.
        tokens: Its continuation as far as it is ready, maybe empty.
        depth: How deep the likeliest outcomes are ready.
    """

    branch: int
    tokens: list[int]
    depth: int


class SpeculationCache:
    """A view of the shared memory; one process makes it to write, another to read.

    Args:
        buffer: At least ``shape.num_bytes`` bytes, zero at first.
        shape: Sizes, the same on both sides.
    """

    def __init__(self, buffer: memoryview, shape: CacheShape) -> None:
        self.shape = shape
        self._heartbeat = np.frombuffer(buffer, np.int64, 1)
        self._tables = [
            _Table(buffer, 8 + index * shape.bytes_per_request, shape) for index in range(shape.num_requests)
        ]

    @property
    def heartbeat(self) -> int:
        """A number that grows while the drafter lives."""
        return int(self._heartbeat[0])

    def beat(self) -> None:
        """Writer: show life."""
        self._heartbeat[0] += 1

    def clear(self, request: int, round_number: int) -> None:
        """Writer: begin a round with nothing prepared."""
        table = self._tables[request]
        table.header[_NUM_BRANCHES] = table.header[_DEPTH] = table.header[_DRAFT_LENGTH] = 0
        table.header[_ROUND] = table.header[_DRAFT_ROUND] = round_number

    def put_outcomes(self, request: int, keys: list[tuple[int, int]]) -> None:
        """Writer: publish the outcomes (num_accepted, token) that are being prepared."""
        table = self._tables[request]
        if keys:
            table.keys[: len(keys)] = keys
        table.header[_NUM_BRANCHES] = len(keys)

    def put_tokens(self, request: int, depth: int, tokens: list[int]) -> None:
        """Writer: publish the next token of the first branches; ``depth`` counts it."""
        table = self._tables[request]
        table.tokens[: len(tokens), depth - 1] = tokens
        table.widths[depth - 1] = len(tokens)
        table.header[_DEPTH] = depth

    def put_draft(self, request: int, tokens: list[int]) -> None:
        """Writer: publish the speculation of the round so far (a fallback)."""
        table = self._tables[request]
        table.draft[: len(tokens)] = tokens
        table.header[_DRAFT_LENGTH] = len(tokens)

    def put_laws(self, request: int, round_number: int, laws: list[ProcessedLaw]) -> None:
        """Writer: publish the laws that the round's speculation was drawn from."""
        table = self._tables[request]
        for place, law in enumerate(laws):
            count = len(law.scores)
            table.law_sizes[place] = -count if law.ids is None else count
            table.law_scores[place, :count] = law.scores
            if law.ids is not None:
                table.law_ids[place, :count] = law.ids
        table.header[_LAWS_ROUND] = round_number

    def look_up(self, request: int, round_number: int, *, num_accepted: int, token: int) -> PreparedOutcome | None:
        """Reader: find an outcome of a round; ``None`` if it was not predicted."""
        table = self._tables[request]
        if table.header[_ROUND] != round_number:
            return None
        keys = table.keys[: int(table.header[_NUM_BRANCHES])]
        found = np.flatnonzero((keys[:, 0] == num_accepted) & (keys[:, 1] == token))
        if found.size == 0:
            return None
        branch, depth = int(found[0]), int(table.header[_DEPTH])
        return PreparedOutcome(branch, table.continuation(branch, depth), depth)

    def num_prepared(self, request: int, round_number: int) -> int:
        """Reader: return how many tokens are ready for a round, over all of its outcomes."""
        table = self._tables[request]
        if table.header[_ROUND] != round_number:
            return 0
        return int(table.widths[: int(table.header[_DEPTH])].sum())

    def predicted(self, request: int, round_number: int) -> list[PredictedOutcome]:
        """Reader: return every outcome that is prepared for a round, with what is ready of its continuation."""
        table = self._tables[request]
        if table.header[_ROUND] != round_number:
            return []
        depth = int(table.header[_DEPTH])
        keys: list[list[int]] = table.keys[: int(table.header[_NUM_BRANCHES])].tolist()
        return [
            PredictedOutcome(
                num_accepted=num_accepted, token_id=token, continuation=tuple(table.continuation(branch, depth))
            )
            for branch, (num_accepted, token) in enumerate(keys)
        ]

    def draft(self, request: int, round_number: int) -> list[int]:
        """Reader: return the speculation of the round so far."""
        table = self._tables[request]
        if table.header[_DRAFT_ROUND] != round_number:
            return []
        return table.draft[: int(table.header[_DRAFT_LENGTH])].tolist()

    def laws(self, request: int, round_number: int, *, vocab_size: int, count: int) -> list[ProcessedLaw] | None:
        """Reader: return the laws of the round's speculation; ``None`` while they are not there."""
        table = self._tables[request]
        if table.header[_LAWS_ROUND] != round_number:
            return None
        laws: list[ProcessedLaw] = []
        for place in range(count):
            size = int(table.law_sizes[place])
            ids = None if size < 0 else table.law_ids[place, :size].copy()
            laws.append(
                ProcessedLaw(vocab_size=vocab_size, ids=ids, scores=table.law_scores[place, : abs(size)].copy())
            )
        return laws


class _Table:
    """One request's arrays inside the shared memory."""

    def __init__(self, buffer: memoryview, offset: int, shape: CacheShape) -> None:
        self._buffer, self._offset = buffer, offset
        branches, depth, width = shape.max_branches, shape.max_depth, shape.law_width
        self.header = self._take(np.int64, _HEADER)
        self.keys = self._take(np.int64, 2 * branches).reshape(branches, 2)
        self.tokens = self._take(np.int64, branches * depth).reshape(branches, depth)
        self.widths = self._take(np.int64, depth)
        self.draft = self._take(np.int64, depth)
        self.law_sizes = self._take(np.int64, depth)
        self.law_ids = self._take(np.int64, depth * width).reshape(depth, width)
        self.law_scores = self._take(np.float32, depth * width).reshape(depth, width)

    def continuation(self, branch: int, depth: int) -> list[int]:
        """Return the tokens of a branch that are ready at a depth."""
        num_tokens = int(np.count_nonzero(self.widths[:depth] > branch))
        return self.tokens[branch, :num_tokens].tolist()

    def _take(self, kind: type[np.generic], count: int) -> np.ndarray:
        array: np.ndarray = np.frombuffer(self._buffer, kind, count, self._offset)
        self._offset += array.nbytes
        return array
