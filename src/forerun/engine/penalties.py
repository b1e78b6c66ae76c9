"""Which tokens came before, counted incrementally, and the penalties that follow from it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from forerun.engine.history import common_length
from forerun.engine.sampling import SamplingParams


class TokenPenalties:
    """Counts of one request's tokens, and the repetition, presence and frequency penalties on a logits row.

    The counted output follows the caller's: tokens are added and taken back as drafts are accepted and rejected, so a
    row costs the number of *different* tokens seen, not the length of the text.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        candidate_ids: Int64[np.ndarray, " candidates"] | None,
    ) -> None:
        self._params = params
        self._candidate_ids = candidate_ids
        self._output_ids: list[int] = []
        self._slot_of: dict[int, int] = {}
        self._column = np.empty(64, np.int64)
        self._is_column = np.empty(64, np.bool_)
        self._count = np.zeros(64, np.int64)
        for token_id in dict.fromkeys(prompt_ids):
            self._slot(token_id)
        self._num_prompt_slots = len(self._slot_of)

    def follow(self, output_ids: Sequence[int]) -> None:
        """Make the counted output equal ``output_ids``, taking back and adding only where they differ."""
        counted = self._output_ids
        shared = common_length(counted, output_ids)
        while len(counted) > shared:
            self._count[self._slot_of[counted.pop()]] -= 1
        for token_id in output_ids[shared:]:
            self.add(token_id)

    def add(self, token_id: int) -> None:
        """Count one more output token."""
        slot = self._slot(token_id)  # first, for it may replace the array
        self._count[slot] += 1
        self._output_ids.append(token_id)

    def apply(self, row: Float32[np.ndarray, " candidates"]) -> None:
        """Change the logits of the counted tokens in place: first repetition, then frequency and presence."""
        params = self._params
        num_slots = len(self._slot_of)
        counts = self._count[:num_slots]
        in_output = counts > 0
        seen = in_output | (np.arange(num_slots) < self._num_prompt_slots)
        touched = seen & self._is_column[:num_slots]
        columns = self._column[:num_slots][touched]
        counts, in_output = counts[touched], in_output[touched]
        logits = row[columns].astype(np.float64)
        logits = np.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
        row[columns] = logits - params.frequency_penalty * counts - params.presence_penalty * in_output

    def _slot(self, token_id: int) -> int:
        slot = self._slot_of.get(token_id)
        if slot is not None:
            return slot
        slot = len(self._slot_of)
        if slot == self._column.shape[0]:
            self._column = np.concatenate([self._column, np.empty_like(self._column)])
            self._is_column = np.concatenate([self._is_column, np.empty_like(self._is_column)])
            self._count = np.concatenate([self._count, np.zeros_like(self._count)])
        self._slot_of[token_id] = slot
        column, is_column = token_id, True
        if self._candidate_ids is not None:
            column = int(np.searchsorted(self._candidate_ids, token_id))
            is_column = column < self._candidate_ids.shape[0] and bool(self._candidate_ids[column] == token_id)
        self._column[slot], self._is_column[slot] = column, is_column
        return slot
