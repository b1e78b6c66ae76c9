r"""Speculative sampling by shared noise: target and draft draw with the same Gumbel numbers and tend to agree.

At each position the target's token is :math:`\arg\max_v \log p(v) + g(v)` with noise g keyed by (seed, request,
position, v), and the draft's token is the same with its own law q. A draft token is accepted when it *equals* the
target's own token; the first that differs is replaced by the target's.

Exactness needs no argument about the draft: the emitted tokens are a function of the target's laws and the noise alone,
the very function that decoding without a draft computes. So the law is the target's, and under one seed every method,
every hit and miss, and every draft however wrong gives the same tokens (as far as the model gives the same logits).

The price is acceptance: two laws agree with probability :func:`coupled_acceptance`, at least (1 - TV) / (1 + TV), where
accept and replace reaches 1 - TV, the most that any rule can. In return the draft sends token ids and no laws.

Reference:
    Daliri, Musco and Suresh 2024, "Coupling without Communication and Drafter-Invariant Speculative Decoding"
    (arXiv 2408.07978).
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float64

from forerun.core.rng import gumbel_argmax
from forerun.engine.law import ProcessedLaw


def coupled_token(law: ProcessedLaw, *, seed: int, request: int, position: int) -> int:
    """Return the token that the shared noise of a position picks from a law, the target's or the draft's.

    Args:
        law: The processed law.
        seed: Root seed of the request.
        request: Number of the request among those that share the seed.
        position: Index of the token in its sequence, prompt included.

    Returns:
        A draw from ``law``, the same whenever the law and the key are.

    Raises:
        FloatingPointError: No candidate has a finite score.
    """
    if law.is_one_hot:
        return law.token_at(0)
    return law.token_at(gumbel_argmax(law.scores, ids=law.ids, seed=seed, request=request, position=position))


def coupled_tokens(laws: Iterable[ProcessedLaw], *, seed: int, request: int, first_position: int) -> Iterator[int]:
    """Yield :func:`coupled_token` of consecutive positions, one law at a time, as the tokens are asked for."""
    for position, law in enumerate(laws, start=first_position):
        yield coupled_token(law, seed=seed, request=request, position=position)


def verify_equal(target_tokens: Iterable[int], draft_ids: Sequence[int]) -> tuple[int, int]:
    """Decide how much of a draft is kept, and the token after it, where the target names its own tokens.

    Serves greedy decoding (the target's token is its most likely one) and shared noise alike.

    Args:
        target_tokens: The target's own token at each position of the draft, given that the draft before it is right,
            and at the position after it; read one by one and no further than the first difference.
        draft_ids: The draft; may be empty.

    Returns:
        The number of accepted draft tokens, and the target's token at the position after them.
    """
    tokens = iter(target_tokens)
    for index, token_id in enumerate(draft_ids):
        own = next(tokens)
        if own != token_id:
            return index, own
    return len(draft_ids), next(tokens)


def coupled_acceptance(
    target_p: Float64[np.ndarray, " vocab"], draft_q: Float64[np.ndarray, " vocab"]
) -> Float64[np.ndarray, ""]:
    r"""Return the probability that shared noise picks the same token from two laws.

    .. math:: \sum_{i : p_i, q_i > 0} \Big(\sum_j \max(p_j / p_i, \; q_j / q_i)\Big)^{-1}

    With exponential races :math:`E_j / p_j`, token i wins both when each :math:`E_j` exceeds
    :math:`E_i \max(p_j / p_i, q_j / q_i)`. Costs the square of the vocabulary: a quantity for analysis.

    Args:
        target_p: Probabilities p.
        draft_q: Probabilities q over the same ids.

    Returns:
        A probability between (1 - TV) / (1 + TV) and 1 - TV, with TV the total variation distance of p and q.
    """
    both = np.flatnonzero((target_p > 0) & (draft_q > 0))
    ratios = np.maximum(target_p[None, :] / target_p[both, None], draft_q[None, :] / draft_q[both, None])
    return (1.0 / ratios.sum(axis=1)).sum()
