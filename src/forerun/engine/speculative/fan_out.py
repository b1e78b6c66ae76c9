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

import math
from collections.abc import Sequence

from forerun.core.errors import ConfigError


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
