"""What the target waits for on a miss: as many tokens as gain more than their time."""

import random

import pytest

from forerun.engine.speculative import fallback_length
from forerun.engine.speculative.fallback_length import AdaptiveFallbackLength, OneLess


class Clock:
    """Stands for the module's clock."""

    def __init__(self):
        self.now = 1.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(fallback_length, "time", clock)
    return clock


def play(clock, *, acceptance_rate, wait_s, token_s, num_rounds=600, hit_rate=0.6, seed=0):
    """Return the lengths chosen with a pass of 20 ms, where a miss waits ``wait_s``, and ``token_s`` more per token."""
    rng, lengths, chosen = random.Random(seed), AdaptiveFallbackLength(8), []
    for _ in range(num_rounds):
        lengths.begin_round()
        length, fallback = 4, 0
        if rng.random() > hit_rate:
            length = fallback = lengths.choose(4)
            chosen.append(fallback)
            if fallback > 0:
                clock.now += wait_s + token_s * fallback
                lengths.learn_wait(fallback, wait_s + token_s * fallback)
        lengths.begin_verification(length)
        clock.now += 0.020 + 0.0005 * length
        accepted = 0
        while accepted < length and rng.random() < acceptance_rate:
            accepted += 1
        lengths.learn_outcome(accepted, fallback=fallback)
    return chosen


def best_length(*, acceptance_rate, wait_s, token_s, hit_rate=0.6):
    """The length with the most tokens per second over all rounds, by its closed form."""

    def rate(length):
        hit = sum(acceptance_rate**k for k in range(5))
        miss = sum(acceptance_rate**k for k in range(length + 1))
        waited = wait_s + token_s * length if length else 0.0
        seconds = 0.020 + 0.0005 * (hit_rate * 4 + (1 - hit_rate) * length) + (1 - hit_rate) * waited
        return (hit_rate * hit + (1 - hit_rate) * miss) / seconds

    return max(range(5), key=rate)


@pytest.mark.parametrize(
    ("acceptance_rate", "wait_s", "token_s"),
    [(0.5, 0.004, 0.003), (0.9, 0.004, 0.003), (0.3, 0.010, 0.005), (0.7, 0.0, 0.001), (0.8, 0.001, 0.008)],
)
def test_it_settles_near_the_length_with_the_most_tokens_per_second(clock, acceptance_rate, wait_s, token_s):
    case = {"acceptance_rate": acceptance_rate, "wait_s": wait_s, "token_s": token_s}
    chosen = sorted(play(clock, **case)[100:])
    assert abs(chosen[len(chosen) // 2] - best_length(**case)) <= 1


def test_a_useless_draft_is_not_waited_for_but_tried_again(clock):
    chosen = play(clock, acceptance_rate=0.02, wait_s=0.004, token_s=0.003)[50:]
    assert chosen.count(0) > 0.8 * len(chosen)
    assert any(chosen)


def test_the_limit_holds(clock):
    lengths = AdaptiveFallbackLength(8)
    play(clock, acceptance_rate=0.9, wait_s=0.0, token_s=0.0)
    for limit in (1, 2, 8):
        assert all(0 <= lengths.choose(limit) <= limit for _ in range(30))


def test_a_fixed_length_is_one_less():
    assert [OneLess().choose(limit) for limit in (1, 2, 5)] == [1, 1, 4]


def share_that_waits(clock, *, num_requests, draft_s, num_rounds=400, acceptance_rate=0.6, hit_rate=0.7, seed=0):
    """Of rounds with a miss, how many waited for a whole draft; a pass of 6 ms, and one batch of drafts of 4 tokens."""
    rng, lengths, num_missing, num_waited = random.Random(seed), AdaptiveFallbackLength(8, is_whole=True), 0, 0
    for _ in range(num_rounds):
        lengths.begin_round()
        num_missed = sum(rng.random() > hit_rate for _ in range(num_requests))
        length = 0
        if num_missed:
            length = lengths.choose(4, num_missed=num_missed, num_requests=num_requests)
            assert length in {0, 4}
            num_missing, num_waited = num_missing + 1, num_waited + (length > 0)
        if length:
            clock.now += draft_s
            lengths.learn_wait(length, draft_s)
        proposed = [length] * num_missed + [4] * (num_requests - num_missed)
        lengths.begin_verification(sum(proposed))
        clock.now += 0.006 + 1e-5 * sum(proposed)
        for place, drafted in enumerate(proposed):
            accepted = 0
            while accepted < drafted and rng.random() < acceptance_rate:
                accepted += 1
            lengths.learn_outcome(accepted, fallback=drafted if place < num_missed else 0)
    return num_waited / num_missing


def test_many_do_not_wait_for_the_drafts_of_few(clock):
    """Alone, 1.3 tokens more are worth 2 ms of a round of 6; with fifteen others that hit, they are not."""
    assert share_that_waits(clock, num_requests=1, draft_s=0.002) > 0.8
    assert share_that_waits(clock, num_requests=16, draft_s=0.002) < 0.2
    assert share_that_waits(clock, num_requests=16, draft_s=0.0002) > 0.8
