r"""How many outcomes to prepare for each number of accepted tokens.

A round that accepts k of K draft tokens ends in one token more, and that token is predicted if it is among the
:math:`F_k` prepared for k. With the miss law :math:`F^{-r}` and a budget :math:`\sum_k F_k = B`, the expected hit rate
:math:`\sum_k P(k) (1 - F_k^{-r})` is largest where its derivatives :math:`P(k) r F_k^{-(1+r)}` are equal:

.. math:: F_k \propto P(k)^{1/(1+r)}

The paper's geometric fan-out is the case of independent acceptance, :math:`P(k) = (1-a) a^k` and :math:`P(K) = a^K`.
Counts are whole: each share is rounded down and the rest goes to the largest remainders, so the budget is met exactly.

Reference:
    Kumar et al. 2026 (arXiv 2603.03251), Theorem 12.
"""

import heapq
import math
from collections.abc import Sequence
from typing import Final

from forerun.core.errors import ConfigError

REACH_NATS: Final = 8.0
"""Below the likeliest token by more than this, none is an outcome; even shared noise lifts hardly any from farther."""


def joint_outcomes(
    ranked: Sequence[Sequence[tuple[int, float]]], speculation: Sequence[int], *, budget: int
) -> list[tuple[int, int]]:
    r"""Return the outcomes that are likeliest by the draft's own laws.

    The outcome of k accepted tokens and then t has the chance

    .. math:: P(k, t) = p_k(t) \prod_{j < k} p_j(s_{j+1})

    with p_j the law at place j and s the speculation; at k < K, t is not :math:`s_{k+1}`. Where the draft is sure of a
    token, few outcomes are spent on its rejection.

    Args:
        ranked: For each place 0 to K the likeliest tokens with their chances.
        speculation: The K draft tokens.
        budget: B, outcomes to return at most.

    Returns:
        Pairs of k and t, likeliest first.
    """
    outcomes: list[tuple[float, int, int]] = []
    reached = 1.0
    for num_accepted, candidates in enumerate(ranked):
        token = speculation[num_accepted] if num_accepted < len(speculation) else None
        outcomes += [(reached * chance, num_accepted, other) for other, chance in candidates if other != token]
        rarest = candidates[-1][1] if candidates else 0.0
        reached *= next((chance for other, chance in candidates if other == token), rarest)
    return [(num_accepted, token) for _, num_accepted, token in heapq.nlargest(budget, outcomes)]


def shared_outcomes(
    ranked: Sequence[Sequence[tuple[int, float]]], speculation: Sequence[int], *, fan_out: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the F_k likeliest tokens for each number k of accepted tokens, as pairs of k and t.

    Args:
        ranked: As for :func:`joint_outcomes`.
        speculation: The K draft tokens.
        fan_out: F_0 to F_K.
    """
    outcomes: list[tuple[int, int]] = []
    for num_accepted, (candidates, count) in enumerate(zip(ranked, fan_out, strict=True)):
        without = speculation[num_accepted] if num_accepted < len(speculation) else None
        tokens = [token for token, _ in candidates if token != without]
        outcomes += [(num_accepted, token) for token in tokens[:count]]
    return outcomes


def uniform_fan_out(*, budget: int, num_speculative_tokens: int) -> tuple[int, ...]:
    """Share a branch budget equally; the first counts get one more where it does not divide.

    Args:
        budget: B >= 0, outcomes prepared per round and request.
        num_speculative_tokens: K >= 0.

    Returns:
        F_0 to F_K, which sum to ``budget``.

    Raises:
        ConfigError: ``budget`` is negative.
    """
    return _apportioned(budget, [1.0] * (num_speculative_tokens + 1))


def geometric_fan_out(
    *, budget: int, num_speculative_tokens: int, acceptance_rate: float, exponent: float
) -> tuple[int, ...]:
    """Share a branch budget by the law of independent acceptance (Theorem 12).

    Args:
        budget: B >= 0, outcomes prepared per round and request.
        num_speculative_tokens: K >= 0.
        acceptance_rate: a, the chance of each draft token to be accepted, a fraction in (0, 1).
        exponent: r > 0 of the miss law.

    Returns:
        F_0 to F_K, which sum to ``budget``.

    Raises:
        ConfigError: An argument is out of range.
    """
    if not 0 < acceptance_rate < 1:
        raise ConfigError(f"expected_acceptance_rate={acceptance_rate}: must be in (0, 1)")
    accepted = [(1 - acceptance_rate) * acceptance_rate**k for k in range(num_speculative_tokens)]
    accepted.append(acceptance_rate**num_speculative_tokens)
    return measured_fan_out(budget=budget, accepted_weights=accepted, exponent=exponent)


def measured_fan_out(*, budget: int, accepted_weights: Sequence[float], exponent: float) -> tuple[int, ...]:
    """Share a branch budget by how often each number of accepted tokens was seen.

    Args:
        budget: B >= 0, outcomes prepared per round and request.
        accepted_weights: P(0) to P(K) up to a factor, such as counts; equal shares where all are 0.
        exponent: r > 0 of the miss law.

    Returns:
        F_0 to F_K, which sum to ``budget``.

    Raises:
        ConfigError: An argument is out of range.
    """
    if not exponent > 0:
        raise ConfigError(f"fan_out_exponent={exponent}: must be > 0")
    if not accepted_weights or any(not 0 <= weight < math.inf for weight in accepted_weights):
        raise ConfigError(f"accepted_weights={list(accepted_weights)}: must be finite numbers >= 0, at least one")
    largest = max(accepted_weights)
    if largest == 0:
        return _apportioned(budget, [1.0] * len(accepted_weights))
    return _apportioned(budget, [(weight / largest) ** (1 / (1 + exponent)) for weight in accepted_weights])


def _apportioned(budget: int, weights: Sequence[float]) -> tuple[int, ...]:
    if budget < 0:
        raise ConfigError(f"branch_budget={budget}: must be >= 0")
    total = math.fsum(weights)
    shares = [budget * weight / total for weight in weights]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda k: counts[k] - shares[k])
    for k in by_remainder[: budget - sum(counts)]:
        counts[k] += 1
    return tuple(counts)
