r"""Speculative sampling by accept and replace: the lossless heart, free of models and of hidden chance.

A draft token x, drawn from q, is kept with probability :math:`\min(1, p(x) / q(x))`; the first one that is not kept is
replaced by a draw from :math:`\propto \max(p - q, 0)`. Each emitted token then has the target's law, because

.. math:: \min(p, q) + \Big(1 - \sum_y \min(p(y), q(y))\Big) \, r = p.

q must be the law the token was *actually drawn from*: after the draft's own temperature, truncation, Saguaro rescaling
and reduced vocabulary. A token proposed without chance (greedy draft, n-gram, fallback) has a one-hot q. A one-hot q is
exact for *any* token proposed without a look at the verifier's noise, as the identity then holds given the token; for
a sampled one it only accepts less often than its own q would.

Reference:
    Leviathan et al. 2022 (arXiv 2211.17192), Algorithm 1; Kumar et al. 2026 (arXiv 2603.03251), Definition 14.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import numpy as np
from jaxtyping import Float64

from forerun.core.errors import ConfigError
from forerun.core.numerics import PART_UNITS
from forerun.engine.law import ProcessedLaw, normalized, quantile_index

_LEAST_RESIDUAL: Final = PART_UNITS**-2
"""Less than that is nothing to draw from."""

Noise = Callable[[int, Literal["accept", "residual", "sample"]], float]
"""A uniform number in (0, 1) for (index in the draft, purpose); see :func:`forerun.core.rng.uniform`."""


def acceptance_probability(target: ProcessedLaw, draft: ProcessedLaw | None, token_id: int) -> float:
    """Return the probability with which a draft token is kept, min(1, p(x) / q(x)).

    Args:
        target: The target's law p.
        draft: The law q the token was drawn from; ``None``: it was chosen without chance, q is one-hot.
        token_id: The draft token x, of positive probability under q.

    Returns:
        A probability; 0 where q(x) is 0, which only a broken drafter reports.
    """
    p = target.prob(token_id)
    if draft is None or draft.is_one_hot:
        return p if draft is None or draft.token_at(0) == token_id else 0.0
    q = draft.prob(token_id)
    return min(1.0, p / q) if q > 0 else 0.0


def residual_distribution(
    target: ProcessedLaw, draft: ProcessedLaw | None, token_id: int
) -> Float64[np.ndarray, " candidates"]:
    r"""Return the law of the token that replaces a rejected draft token, over the candidates of ``target``.

    .. math:: r(x) = \frac{\max(p(x) - q(x), 0)}{\sum_y \max(p(y) - q(y), 0)}

    Args:
        target: The target's law p.
        draft: The law q the token was drawn from; ``None``: it was chosen without chance, q is one-hot.
        token_id: The rejected token, which names q where ``draft`` is ``None``.

    Returns:
        Probabilities aligned with ``target.ids``; p itself where p - q is nowhere positive (a rejection there has
        probability 0).
    """
    weights = _residual_weights(target, draft, token_id)
    # Where p and q nearly agree all weights are tiny, and a sum counts in parts of 1.
    return normalized(weights / weights.max())


def _residual_weights(
    target: ProcessedLaw, draft: ProcessedLaw | None, token_id: int
) -> Float64[np.ndarray, " candidates"]:
    """Return :func:`residual_distribution`, not normalised."""
    residual = target.probs()
    if draft is None:
        draft = ProcessedLaw.one_hot(token_id, vocab_size=target.vocab_size)
    q = draft.probs()
    if target.ids is None:
        residual[slice(None) if draft.ids is None else draft.ids] -= q
    elif draft.ids is None:
        residual -= q[target.ids]
    else:
        _, in_target, in_draft = np.intersect1d(target.ids, draft.ids, assume_unique=True, return_indices=True)
        residual[in_target] -= q[in_draft]
    np.maximum(residual, 0.0, out=residual)
    return residual if residual.max() >= _LEAST_RESIDUAL else target.probs()


def verify_rejection(
    target_laws: Iterable[ProcessedLaw],
    draft_ids: Sequence[int],
    draft_laws: Sequence[ProcessedLaw | None],
    noise: Noise,
) -> tuple[int, int]:
    """Decide how much of a draft is kept, and the token after it.

    Args:
        target_laws: The target's law at each position of the draft and at the one after it, read one by one and no
            further than the first rejection.
        draft_ids: The draft; may be empty.
        draft_laws: The law each draft token was drawn from; ``None`` for a token chosen without chance.
        noise: Uniform numbers: ``accept`` and ``residual`` at a draft index, ``sample`` at index ``len(draft_ids)``.

    Returns:
        The number of accepted draft tokens, and the recovered token (after a rejection) or the bonus token.
    """
    laws = iter(target_laws)
    for index, (token_id, draft) in enumerate(zip(draft_ids, draft_laws, strict=True)):
        target = next(laws)
        if noise(index, "accept") < acceptance_probability(target, draft, token_id):
            continue
        residual = _residual_weights(target, draft, token_id)
        return index, target.token_at(quantile_index(residual, noise(index, "residual")))
    return len(draft_ids), next(laws).draw(noise(len(draft_ids), "sample"))


def saguaro_rescale(draft: ProcessedLaw, *, fan_out: int, c: float) -> ProcessedLaw:
    """Return the draft's law with its ``fan_out`` most likely tokens made less likely by the factor ``c``.

    Those are the tokens for which the speculation cache prepares, so the residual max(p - q, 0) moves onto them: more
    hits, fewer accepted tokens. Exact, as the rescaled law is both drawn from and verified with.

    Args:
        draft: The draft's law.
        fan_out: F, number of tokens to make less likely; the lower id first where tied.
        c: C in [0, 1]; 1 changes nothing.

    Returns:
        The rescaled law; ``draft`` itself where every token would be rescaled alike.

    Raises:
        ConfigError: ``c`` or ``fan_out`` is out of range.
    """
    if not 0 <= c <= 1:
        raise ConfigError(f"saguaro_c={c}: must be in [0, 1]; 1 turns Saguaro sampling off")
    if fan_out < 0:
        raise ConfigError(f"fan_out={fan_out}: must be >= 0")
    num_possible = int(np.count_nonzero(draft.scores > -np.inf))
    if c == 1 or fan_out == 0 or fan_out >= num_possible:
        return draft
    scores = draft.scores.copy()
    cut = np.partition(scores, -fan_out)[-fan_out]
    above = np.flatnonzero(scores > cut)
    tied = np.flatnonzero(scores == cut)[: fan_out - above.shape[0]]
    scores[np.concatenate([above, tied])] += math.log(c) if c > 0 else -np.inf
    return ProcessedLaw(vocab_size=draft.vocab_size, ids=draft.ids, scores=scores)
