"""How far a draft's law is from the target's."""

from typing import Protocol

import torch
from torch import Tensor


class TargetLaws(Protocol):
    """The target's law at the N places of a batch that count."""

    @property
    def columns(self) -> Tensor:
        """int64 ``[N, top]``: its likeliest tokens as columns of the draft's head, 0 for one that the draft lacks."""
        ...

    @property
    def probs(self) -> Tensor:
        """float32 ``[N, top]``: their probabilities, 0 for one that the draft lacks."""
        ...


def distillation_loss(logits: Tensor, batch: TargetLaws, *, greedy_share: float) -> Tensor:
    r"""Return the mean cross-entropy to the target, partly to its law and partly to its likeliest token.

    .. math:: -\frac1N \sum_n \Big[(1 - g) \sum_i p_{ni} \log q_{ni} + g \log q_n(\arg\max p_n)\Big]

    The first term is the KL divergence up to a constant (over the stored head of the law); the second aims at greedy
    acceptance.

    Args:
        logits: ``[N, draft vocabulary]``.
        batch: The target's law at the same places.
        greedy_share: g, in [0, 1].
    """
    logprobs = logits.log_softmax(dim=-1).gather(1, batch.columns)
    best = logprobs[:, 0] * (batch.probs[:, 0] > 0)
    return -((1 - greedy_share) * (batch.probs * logprobs).sum(dim=1) + greedy_share * best).mean()


@torch.no_grad()
def greedy_agreement(logits: Tensor, batch: TargetLaws) -> float:
    """Return the fraction of places where draft and target have the same likeliest token (the greedy acceptance)."""
    same = (logits.argmax(dim=-1) == batch.columns[:, 0]) & (batch.probs[:, 0] > 0)
    return float(same.float().mean())
