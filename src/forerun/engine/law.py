"""The law of one token: a softmax over a part of the vocabulary.

Target and draft laws have this one form, so that "the law a token was actually drawn from" is a value that can be kept,
sent and verified. It is stored as scores (log-probabilities up to a constant); the probabilities are *defined* as the
normalised ``exp(scores - max)`` in the precision of the scores, summed so that no order changes the sum
(:mod:`forerun.core.numerics`), and every reader uses that. So a device has the same law, to the last bit, of float32
scores (:mod:`forerun.nn.token_laws`).
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Float64, Int64

from forerun.core.numerics import PART_UNITS, exp_weights, running_sums
from forerun.engine.outputs import TokenLogprob


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ProcessedLaw:
    """The law of the token at one position, after all sampling parameters.

    Attributes:
        vocab_size: Size of the target's vocabulary; ids are in [0, vocab_size).
        ids: The candidates, ascending; ``None``: every id of the vocabulary.
        scores: Log-probability of each candidate up to a common constant, float32 or float64; minus infinity is
            probability zero. At least one is finite.
    """

    vocab_size: int
    ids: Int64[np.ndarray, " candidates"] | None
    scores: Float[np.ndarray, " candidates"]

    @classmethod
    def one_hot(cls, token_id: int, *, vocab_size: int) -> Self:
        """Return the law of a token chosen without chance: greedy, n-gram look-up, a fallback guess."""
        return cls(vocab_size=vocab_size, ids=np.array([token_id], np.int64), scores=np.zeros(1, np.float32))

    @classmethod
    def from_probs(
        cls,
        probs: Float[np.ndarray, " candidates"],
        *,
        vocab_size: int,
        ids: Int64[np.ndarray, " candidates"] | None = None,
    ) -> Self:
        """Return the law with these probabilities (not negative, summing to more than 0) on ``ids``, ascending."""
        with np.errstate(divide="ignore"):
            return cls(vocab_size=vocab_size, ids=ids, scores=np.log(probs))

    @property
    def is_one_hot(self) -> bool:
        """Whether a single candidate is left."""
        return self.scores.shape[0] == 1

    def token_at(self, index: int) -> int:
        """Return the vocabulary id of candidate ``index``."""
        return index if self.ids is None else int(self.ids[index])

    def index_of(self, token_id: int) -> int | None:
        """Return the candidate index of a vocabulary id; ``None`` where it is no candidate."""
        if self.ids is None:
            return token_id if 0 <= token_id < self.scores.shape[0] else None
        index = int(np.searchsorted(self.ids, token_id))
        return index if index < self.ids.shape[0] and self.ids[index] == token_id else None

    def _weights(self) -> Float64[np.ndarray, " candidates"]:
        """Return what the probabilities are in proportion to; the largest is 1."""
        largest = float(self.scores.max())
        if not math.isfinite(largest):
            raise FloatingPointError(f"largest score is {largest}: scores must be finite somewhere, never NaN or +inf")
        if self.scores.dtype == np.float32:
            return exp_weights(self.scores, largest)
        return np.exp(self.scores - largest)

    def probs(self) -> Float64[np.ndarray, " candidates"]:
        """Return the probability of each candidate; they sum to 1."""
        return normalized(self._weights())

    def dense_probs(self) -> Float64[np.ndarray, " vocab"]:
        """Return the probability of every vocabulary id."""
        dense = np.zeros(self.vocab_size)
        dense[slice(None) if self.ids is None else self.ids] = self.probs()
        return dense

    def prob(self, token_id: int) -> float:
        """Return the probability of one vocabulary id, 0 where it is no candidate."""
        index = self.index_of(token_id)
        if index is None:
            return 0.0
        return float(self.probs()[index])

    def draw(self, uniform: float) -> int:
        """Return the token at quantile ``uniform`` in (0, 1): one draw by inversion, never a token of probability 0."""
        return self.token_at(quantile_index(self._weights(), uniform))

    def logprob(self, token_id: int, *, num_top: int) -> TokenLogprob:
        """Return a token's log-probability, with the ``num_top`` most likely candidates (best first, ties by id)."""
        scores = self.scores.astype(np.float64)
        log_normalizer = scores.max() + math.log(np.exp(scores - scores.max()).sum())
        num_top = min(num_top, int(np.isfinite(scores).sum()))
        top: list[int] = []
        if num_top > 0:
            cut = np.partition(scores, -num_top)[-num_top]
            candidates = np.flatnonzero(scores >= cut)
            top = candidates[np.argsort(-scores[candidates], kind="stable")][:num_top].tolist()
        index = self.index_of(token_id)
        return TokenLogprob(
            token_id=token_id,
            logprob_nats=-math.inf if index is None else float(scores[index] - log_normalizer),
            top=tuple((self.token_at(i), float(scores[i] - log_normalizer)) for i in top),
        )


def normalized(weights: Float64[np.ndarray, " candidates"]) -> Float64[np.ndarray, " candidates"]:
    """Return weights in [0, 1], not all 0, over their sum."""
    return weights / (running_sums(weights)[-1] / PART_UNITS)


def quantile_index(weights: Float64[np.ndarray, " candidates"], uniform: float) -> int:
    """Return the index at quantile ``uniform`` of unnormalised weights.

    Args:
        weights: In [0, 1], with a positive sum.
        uniform: A number in (0, 1).

    Returns:
        The first index whose cumulative weight exceeds ``uniform`` times the total; its weight is positive.
    """
    cumulative = running_sums(weights)
    total = float(cumulative[-1])
    index = int(np.searchsorted(cumulative, uniform * total, side="right"))
    if index == cumulative.shape[0]:  # the product rounded up to the total
        index = int(np.searchsorted(cumulative, total, side="left"))
    return index
