"""Closed forms of the gain, against simulation-free identities and worked cases."""

import pytest

from forerun.core.errors import ConfigError
from forerun.engine.speculative.theory import (
    expected_acceptance_length,
    power_law_hit_rate,
    sequential_speedup,
    ssd_speedup,
)


def test_acceptance_length():
    a, K = 0.7, 5
    assert expected_acceptance_length(acceptance_rate=a, num_speculative_tokens=K) == pytest.approx(
        (1 - a ** (K + 1)) / (1 - a)
    )
    by_outcome = sum((k + 1) * (1 - a) * a**k for k in range(K)) + (K + 1) * a**K
    assert expected_acceptance_length(acceptance_rate=a, num_speculative_tokens=K) == pytest.approx(by_outcome)
    assert expected_acceptance_length(acceptance_rate=1.0, num_speculative_tokens=K) == K + 1
    assert expected_acceptance_length(acceptance_rate=0.0, num_speculative_tokens=K) == 1


def test_always_hitting_hides_the_draft_and_never_hitting_is_sequential():
    times = {"draft_time": 0.6, "fallback_time": 0.3}
    lengths = {"hit_acceptance_length": 4.0, "miss_acceptance_length": 3.0}
    assert ssd_speedup(hit_rate=1.0, **lengths, **times) == pytest.approx(4.0)
    assert ssd_speedup(hit_rate=0.0, **lengths, **times) == pytest.approx(
        sequential_speedup(acceptance_length=3.0, draft_time=0.3)
    )


def test_worked_example_of_the_reproduction():
    # Llama-70B/1B: hit rate .88, 5.68 and 4.01 tokens, fallback .3 of a verification.
    gain = ssd_speedup(
        hit_rate=0.88, hit_acceptance_length=5.68, miss_acceptance_length=4.01, draft_time=1.0, fallback_time=0.3
    )
    assert gain == pytest.approx((0.88 * 5.68 + 0.12 * 4.01) / (0.88 + 0.12 * 1.3))


def test_a_draft_slower_than_verification_is_waited_for_and_a_batch_waits_for_its_misses():
    fields = {"hit_acceptance_length": 4.0, "miss_acceptance_length": 4.0, "fallback_time": 1.0}
    assert ssd_speedup(hit_rate=1.0, draft_time=2.0, **fields) == pytest.approx(2.0)
    gains = [ssd_speedup(hit_rate=0.8, draft_time=0.5, batch_size=b, **fields) for b in (1, 2, 8, 100)]
    assert gains == sorted(gains, reverse=True)
    assert gains[1] == pytest.approx(4.0 / (0.64 + 0.36 * 2.0))
    assert gains[-1] == pytest.approx(2.0)


def test_power_law():
    assert power_law_hit_rate(fan_out=1, exponent=0.7) == 0
    assert power_law_hit_rate(fan_out=0, exponent=0.7) == 0
    assert power_law_hit_rate(fan_out=4, exponent=0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_rates_are_fractions(rate):
    with pytest.raises(ConfigError, match=f"acceptance_rate={rate}: must be a fraction"):
        expected_acceptance_length(acceptance_rate=rate, num_speculative_tokens=3)
