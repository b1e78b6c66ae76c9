r"""Replicates of losses: documents drawn anew, members and seeds left out, all through the same draws.

Documents are resampled with replacement, the same ones for every model, for losses on the same text go together.
Members are not: the same member twice makes no ensemble of two. Instead each replicate leaves one member out at random,
and the deviation that this makes is scaled by :math:`\sqrt{n - 1}`, which gives the jackknife's variance.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy.typing import NDArray

from forerun.core.errors import ConfigError

_MOST_MEMBERS: Final = 10


class Resampling:
    """Draws that every quantity of a study shares; replicate 0 is the sample itself.

    Args:
        document_tokens: Predicted tokens of each document.
        num_replicates: Replicates besides the sample itself.
        seed: Root of the draws.

    Raises:
        ConfigError: Fewer than 2 documents, or fewer than 1 replicate.
    """

    def __init__(self, document_tokens: Sequence[int], *, num_replicates: int, seed: int) -> None:
        if len(document_tokens) < 2 or num_replicates < 1:
            raise ConfigError(
                f"{len(document_tokens)} documents, {num_replicates} replicates: an interval needs at least 2 held-out "
                "documents and 1 replicate"
            )
        self._rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
        count = len(document_tokens)
        draws = self._rng.multinomial(count, np.full(count, 1 / count), size=num_replicates)
        self._weights_RD: NDArray[np.float64] = np.concatenate([np.ones((1, count)), draws]).astype(np.float64)
        self._tokens_R = self._weights_RD @ np.asarray(document_tokens, np.float64)

    @property
    def num_rows(self) -> int:
        """Replicates, the sample itself included."""
        return len(self._weights_RD)

    def loss(self, document_nats: Float64[np.ndarray, " documents"]) -> Float64[np.ndarray, " replicates"]:
        """Return the loss of one model in nats a token."""
        return self._weights_RD @ document_nats / self._tokens_R

    def seed_mean(
        self, document_nats: Sequence[Float64[np.ndarray, " documents"]]
    ) -> Float64[np.ndarray, " replicates"]:
        """Return the mean loss of models that differ by seed; of one model, there is no noise of seeds in it."""
        losses_SR = np.stack([self.loss(nats) for nats in document_nats])
        count = len(losses_SR)
        if count == 1:
            return losses_SR[0]
        mean_R = losses_SR.mean(axis=0)
        without_SR = (count * mean_R - losses_SR) / (count - 1)
        return mean_R + self._scaled(without_SR - mean_R)

    def ensemble_curve(
        self, token_nats_KT: Float32[np.ndarray, "members tokens"], document_starts: Int64[np.ndarray, " documents"]
    ) -> Float64[np.ndarray, "replicates members"]:
        """Return the loss of probability averages of 1 to K members: the mean over all choices of so many of them.

        The loss of an average needs only the members' losses at each token. All K together are one choice; its
        noise is taken to be that of the choices of K - 1.

        Args:
            token_nats_KT: Loss of each member at each token of the held-out text.
            document_starts: Where each document's tokens start.

        Raises:
            ConfigError: More than 10 members, whose choices are too many.
        """
        count = len(token_nats_KT)
        if count > _MOST_MEMBERS:
            raise ConfigError(f"{count} members: at most {_MOST_MEMBERS} can be resampled; name fewer")
        curve_RK = np.empty((self.num_rows, count))
        without_IRK = np.full((count, self.num_rows, count), np.nan)
        for size in range(1, count + 1):
            choices = list(combinations(range(count), size))
            losses_CR = np.stack(
                [
                    self.loss(np.add.reduceat(mixture_nats(token_nats_KT[list(choice)]), document_starts))
                    for choice in choices
                ]
            )
            curve_RK[:, size - 1] = losses_CR.mean(axis=0)
            for left_out in range(count):
                rows = [row for row, choice in enumerate(choices) if left_out not in choice]
                if rows:
                    without_IRK[left_out, :, size - 1] = losses_CR[rows].mean(axis=0)
        if count == 1:
            return curve_RK
        without_IRK[:, :, -1] = without_IRK[:, :, -2]
        deviations_IRK = without_IRK - without_IRK.mean(axis=0)
        return curve_RK + self._scaled(deviations_IRK)

    def _scaled(self, deviations: Float64[np.ndarray, "members replicates *more"]) -> Float64[np.ndarray, "..."]:
        """Return, for each replicate, the deviation that one member left out makes, scaled; none in the sample."""
        count = len(deviations)
        rows = np.arange(self.num_rows)
        chosen = deviations[self._rng.integers(count, size=self.num_rows), rows]
        chosen[0] = 0.0
        return np.sqrt(count - 1) * chosen


def mixture_nats(token_nats_KT: Float32[np.ndarray, "members tokens"]) -> Float64[np.ndarray, " tokens"]:
    r"""Return the loss of the mean of probabilities, :math:`-\log \tfrac1K \sum_k e^{-\ell_k}`, at each token."""
    nats_KT = token_nats_KT.astype(np.float64)
    least_T = nats_KT.min(axis=0)
    return least_T - np.log(np.exp(least_T - nats_KT).mean(axis=0))
