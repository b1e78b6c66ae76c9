"""Batches of real and sampled text, and what a student learns from either."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import log_softmax

from forerun.pretraining.batches import EpochBatches
from forerun.pretraining.sampling import SampledRows


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedBatch:
    """A batch.

    Attributes:
        text: Rows of the corpus; there can be none.
        sampled: Rows of sampled text; there can be none.
    """

    text: Int64[Tensor, "text ids"]
    sampled: SampledRows


class MixedBatches:
    """Batches in which a share of the rows is sampled text.

    Real rows come in the order that they have without sampled ones; sampled rows in a new order each time that all of
    them were seen. Over any steps the share is kept to a row. An epoch is still one pass over the corpus.

    Args:
        text: Batches of the corpus.
        sampled: All sampled text.
        share: Of sampled rows, in (0, 1).
        batch_sequences: Rows of a batch, as many as ``text`` has.
        seed: Root of the sampled rows' orders.
    """

    def __init__(
        self, text: EpochBatches, sampled: SampledRows, *, share: float, batch_sequences: int, seed: int
    ) -> None:
        self._text, self._sampled, self._share = text, sampled, share
        self._batch_sequences, self._seed = batch_sequences, seed
        self.steps_per_epoch = max(1, round(text.steps_per_epoch / (1 - share)))
        self._pass: tuple[int, Int64[np.ndarray, " rows"]] | None = None

    def at(self, step: int) -> MixedBatch:
        """Return the batch of a step."""
        first, end = step * self._batch_sequences, (step + 1) * self._batch_sequences
        sampled_before, sampled_after = int(first * self._share), int(end * self._share)
        text_before, text_after = first - sampled_before, end - sampled_after
        numbers = [self._sampled_row(place) for place in range(sampled_before, sampled_after)]
        sampled = self._sampled.take(torch.tensor(numbers, dtype=torch.int64))
        text = self._text.rows(text_before, text_after) if text_after > text_before else sampled.ids[:0].long()
        return MixedBatch(text=text, sampled=sampled)

    def _sampled_row(self, place: int) -> int:
        number, rest = divmod(place, len(self._sampled))
        if self._pass is None or self._pass[0] != number:
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, number, 1])))
            self._pass = (number, rng.permutation(len(self._sampled)))
        return int(self._pass[1][rest])


def sampled_loss(logits_BTV: Float[Tensor, "rows tokens vocab"], rows: SampledRows) -> Float[Tensor, ""]:
    r"""Return a student's cross-entropy to the ensemble's law on sampled text, in nats a token.

    .. math:: -\sum_{i \in S} p_i \log q_i - \mathbf{1}[y \notin S] \log q_y

    S are the tokens whose probabilities p were kept, y is the token that was drawn. Where the ensemble itself wrote,
    the mean of this over y is the whole cross-entropy, and only the unlikely tokens are left to chance.

    Args:
        logits_BTV: Of the student, whose law is q.
        rows: The text and what was kept of its law.
    """
    log_q_BTV = log_softmax(logits_BTV, dim=-1)
    kept_ids, drawn = rows.kept_ids.long(), rows.ids[:, 1:].long().unsqueeze(-1)
    is_kept = (kept_ids == drawn).any(dim=-1)
    kept = (rows.kept_probs.float() * log_q_BTV.gather(-1, kept_ids)).sum(dim=-1)
    rest = log_q_BTV.gather(-1, drawn).squeeze(-1)
    return -(kept + torch.where(is_kept, 0.0, rest)).mean()
