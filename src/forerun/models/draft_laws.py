"""The laws that a round's draft tokens were drawn from, beside the target that verifies the tokens by them.

Shape legend: C sequences, K tokens of a draft, D columns of the draft's logits.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from forerun.models.graph_pool import Recorder


class DraftLaws:
    """Room for the laws of one round, which stays where it is, so that recorded passes can read it.

    Args:
        num_sequences: Of the target.
        num_places: Tokens of a draft at most.
        vocab_ids: Target ids of the draft's columns, ascending; ``None``: all of them.
        vocab_size: Of the target.
        recorder: Of the target's device; what is put here is put in its order of work.

    Attributes:
        scores: float32 ``[C, K, D]``, minus infinity where a token has no probability.
        columns: int64 ``[D]``, target ids.
        vocab_size: Of the target.

    Effects:
        Allocates ``4 * C * K * D`` bytes.
    """

    def __init__(
        self,
        *,
        num_sequences: int,
        num_places: int,
        vocab_ids: np.ndarray | None,
        vocab_size: int,
        recorder: Recorder,
    ) -> None:
        ids = np.arange(vocab_size) if vocab_ids is None else vocab_ids
        self.vocab_size = vocab_size
        self.columns = torch.from_numpy(ids).to(recorder.device)
        self.scores = torch.zeros((num_sequences, num_places, len(ids)), device=recorder.device)
        self._recorder = recorder
        recorder.catch_up()

    @torch.inference_mode()
    def put(self, parts: Sequence[tuple[int, Tensor]], *, source: Recorder) -> None:
        """Take the laws of drafts; returns before they are copied.

        Args:
            parts: ``(sequence, scores)`` of each draft, ``[tokens, D]``, computed already.
            source: Of the draft's device; what it launches from now on may overwrite them.
        """
        with self._recorder.in_order():
            for sequence, scores in parts:
                self.scores[sequence, : len(scores)].copy_(scores, non_blocking=True)
        source.wait_for(self._recorder)

    @torch.inference_mode()
    def read(self, sequence: int, num_tokens: int) -> np.ndarray:
        """Return the laws of the first tokens of a sequence's draft, float32 ``[num_tokens, D]``."""
        with self._recorder.in_order():
            return self.scores[sequence, :num_tokens].cpu().numpy()
