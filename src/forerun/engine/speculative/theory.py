r"""What speculation should gain: closed forms to check measurements against and to steer by.

Times are in units of one verification pass of the target. Acceptance length counts the recovered or bonus token.

Reference:
    Leviathan et al. 2022 (arXiv 2211.17192), section 3; Kumar et al. 2026 (arXiv 2603.03251), Theorem 7,
    Definition 11, Corollary 16.
"""

from forerun.core.errors import ConfigError


def expected_acceptance_length(*, acceptance_rate: float, num_speculative_tokens: int) -> float:
    r"""Return the mean tokens per pass when each draft token is accepted independently with probability a.

    .. math:: \sum_{k=0}^{K} a^k = \frac{1 - a^{K + 1}}{1 - a}

    Args:
        acceptance_rate: a, a fraction in [0, 1].
        num_speculative_tokens: K >= 0.

    Returns:
        Between 1 and K + 1.
    """
    _check_fraction("acceptance_rate", acceptance_rate)
    return sum(acceptance_rate**k for k in range(num_speculative_tokens + 1))


def sequential_speedup(*, acceptance_length: float, draft_time: float) -> float:
    """Return the gain of speculative decoding over plain decoding when drafting and verifying take turns.

    Args:
        acceptance_length: Mean tokens per pass.
        draft_time: Time to draft, in verification passes.

    Returns:
        Ratio of tokens per second.
    """
    return acceptance_length / (1.0 + draft_time)


def ssd_speedup(
    *,
    hit_rate: float,
    hit_acceptance_length: float,
    miss_acceptance_length: float,
    draft_time: float,
    fallback_time: float,
    batch_size: int = 1,
) -> float:
    r"""Return the gain of speculative speculative decoding over plain decoding (Theorem 7; Corollary 16 for a batch).

    .. math:: \frac{h E_{hit} + (1 - h) E_{miss}}{h^b \max(1, T_p) + (1 - h^b)(1 + T_b)}

    Drafting hides behind verification unless it is the slower; a batch waits for the fallback if any row missed.

    Args:
        hit_rate: h, the share of outcomes that the speculation cache held, for one request.
        hit_acceptance_length: Mean tokens per pass and request in rounds after a hit.
        miss_acceptance_length: The same after a miss.
        draft_time: T_p, time to draft for all prepared outcomes, in verification passes.
        fallback_time: T_b, time of the fallback drafter, in verification passes.
        batch_size: b, requests that share each pass.

    Returns:
        Ratio of tokens per second, at the same batch size.
    """
    _check_fraction("hit_rate", hit_rate)
    all_hit = hit_rate**batch_size
    tokens = hit_rate * hit_acceptance_length + (1.0 - hit_rate) * miss_acceptance_length
    return tokens / (all_hit * max(1.0, draft_time) + (1.0 - all_hit) * (1.0 + fallback_time))


def power_law_hit_rate(*, fan_out: float, exponent: float) -> float:
    """Return the share of outcomes held when F tokens are prepared: 1 - F**-r, for F >= 1 (Definition 11)."""
    if fan_out < 1:
        return 0.0
    return 1.0 - fan_out**-exponent


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name}={value}: must be a fraction in [0, 1]")
