"""The controller finds the best draft length from what it measures, and the branch budget follows hits and depth."""

import random

import pytest

from forerun.engine.speculative.controller import Acceptance, AdaptiveController, BranchBudget, FixedController


def play(controller, *, acceptance_rate, pass_s, draft_s, num_rounds=400, seed=0):
    """Let a controller choose against a draft that is right with a fixed chance; return its choices."""
    rng, chosen = random.Random(seed), []
    for _ in range(num_rounds):
        length = controller.num_speculative_tokens(1)
        chosen.append(length)
        accepted = 0
        while accepted < length and rng.random() < acceptance_rate:
            accepted += 1
        controller.observe(proposed=[length], accepted=[accepted], round_s=pass_s + draft_s * length, forward_s=pass_s)
    return chosen


def play_many(
    controller, num_requests, *, num_rounds, pass_s, draft_s=0.0, any_draft_s=0.0, acceptance_rate=0.6, seed=0
):
    """As :func:`play`, for several requests; ``pass_s`` gives a pass's time by its rows. Return choices and rate.

    A round with drafts takes ``any_draft_s`` longer, and ``draft_s`` for each token of one.
    """
    rng, chosen, num_tokens, time_s = random.Random(seed), [], 0, 0.0
    for _ in range(num_rounds):
        length = controller.num_speculative_tokens(num_requests)
        accepted = []
        for _ in range(num_requests):
            number = 0
            while number < length and rng.random() < acceptance_rate:
                number += 1
            accepted.append(number)
        forward_s = pass_s(num_requests * (1 + length))
        round_s = forward_s + draft_s * length + (any_draft_s if length else 0.0)
        controller.observe(proposed=[length] * num_requests, accepted=accepted, round_s=round_s, forward_s=forward_s)
        chosen.append(length)
        num_tokens, time_s = num_tokens + num_requests + sum(accepted), time_s + round_s
    return chosen, num_tokens / time_s


def flat_then_rising(num_rows):
    """Milliseconds of a pass on a CPU core: the weights are read, then rows count."""
    return max(18.0, 4.0 + 2.0 * num_rows) * 1e-3


def adaptive(*, least_tokens=0):
    return AdaptiveController(Acceptance(8), least_tokens=least_tokens, max_tokens=8, initial=4)


def best_length(acceptance_rate, pass_s, draft_s):
    def rate(length):
        return sum(acceptance_rate**k for k in range(length + 1)) / (pass_s + draft_s * length)

    return max(range(9), key=rate)


@pytest.mark.parametrize(
    ("acceptance_rate", "draft_s"), [(0.9, 0.05), (0.6, 0.1), (0.3, 0.1), (0.05, 0.4), (0.98, 0.0)]
)
def test_it_settles_near_the_best_length(acceptance_rate, draft_s):
    best = best_length(acceptance_rate, 1.0, draft_s)
    chosen = play(adaptive(), acceptance_rate=acceptance_rate, pass_s=1.0, draft_s=draft_s)[200:]
    assert abs(sorted(chosen)[len(chosen) // 2] - best) <= 1


def test_a_draft_that_does_not_pay_is_switched_off_and_tried_again():
    chosen = play(adaptive(), acceptance_rate=0.0, pass_s=1.0, draft_s=0.5)[100:]
    assert chosen.count(0) > 0.85 * len(chosen)
    assert any(chosen)
    assert 0 not in play(adaptive(least_tokens=1), acceptance_rate=0.0, pass_s=1.0, draft_s=0.5)


def test_the_rate_is_tokens_over_time():
    controller = adaptive()
    assert controller.rate(1) is None
    play(controller, acceptance_rate=0.7, pass_s=0.02, draft_s=0.002)
    length = best_length(0.7, 0.02, 0.002)
    expected = sum(0.7**k for k in range(length + 1)) / (0.02 + 0.002 * length)
    assert controller.rate(1) == pytest.approx(expected, rel=0.15)


def test_as_the_batch_grows_drafts_get_shorter_down_to_none():
    """Never more than 3% below no drafts at all, from the first round of a load never seen before."""
    controller = adaptive()
    chosen, _ = play_many(controller, 1, num_rounds=100, pass_s=flat_then_rising, draft_s=2e-3)
    assert sorted(chosen)[50] >= 2
    for num_requests in (16, 4, 11, 2, 16):
        chosen, rate = play_many(controller, num_requests, num_rounds=200, pass_s=flat_then_rising, draft_s=5e-3)
        without = num_requests / flat_then_rising(num_requests)
        assert rate >= 0.97 * without, (num_requests, chosen)
        if num_requests >= 11:
            assert chosen.count(0) >= 190
            assert any(chosen), "tried again now and then"


def test_what_any_draft_costs_is_not_taken_for_the_cost_of_none():
    """Drafts of any length take 25 ms: known from one trial on, and remembered while there are few rounds without."""
    controller = adaptive()
    play_many(controller, 4, num_rounds=100, pass_s=lambda num_rows: 0.03, acceptance_rate=0.9)
    for num_requests in (16, 12):
        chosen, rate = play_many(
            controller,
            num_requests,
            num_rounds=200,
            pass_s=lambda num_rows: 1e-2 + 2.6e-3 * num_rows,
            any_draft_s=0.025,
        )
        assert rate >= 0.97 * num_requests / (1e-2 + 2.6e-3 * num_requests), chosen


def test_where_rows_are_free_many_requests_get_drafts():
    controller = adaptive()
    chosen, rate = play_many(controller, 8, num_rounds=200, pass_s=lambda num_rows: 0.02 + 1e-5 * num_rows)
    assert sorted(chosen)[100] >= 3
    assert rate > 1.8 * 8 / 0.02


def test_a_machine_that_slows_down_is_no_reason_for_drafts():
    """What was timed of long drafts while it was fast must not make them look cheap now."""
    controller = adaptive()
    play_many(controller, 16, num_rounds=60, pass_s=flat_then_rising)
    chosen, _ = play_many(controller, 16, num_rounds=100, pass_s=lambda num_rows: 3 * flat_then_rising(num_rows))
    assert chosen.count(0) >= 90


def test_a_round_in_which_a_draft_catches_up_is_no_measure():
    controller = adaptive()
    for number in range(200):
        length = controller.num_speculative_tokens(4)
        forward_s = 0.02 + 1e-5 * length
        controller.observe(
            proposed=[length] * 4,
            accepted=[length] * 4,
            round_s=forward_s + (0.5 * length if number % 3 == 0 else 1e-4 * length),
            forward_s=forward_s,
            is_settled=number % 3 != 0,
        )
    assert controller.num_speculative_tokens(4) >= 3


def test_ways_with_one_draft_share_what_is_known_of_it():
    acceptance = Acceptance(8)
    acceptance.observe(proposed=[2] * 50, accepted=[2] * 25 + [0] * 25)
    assert acceptance.expected_tokens(0) == 1
    assert acceptance.expected_tokens(1) == pytest.approx(1.5, abs=0.02)
    assert acceptance.expected_tokens(2) == pytest.approx(2.0, abs=0.05)


def test_a_fixed_length_stays():
    controller = FixedController(3)
    assert set(play(controller, acceptance_rate=0.1, pass_s=1.0, draft_s=1.0)) == {3}
    assert controller.rate(1) is None


def test_the_branch_budget_follows_hits_and_depth():
    budget = BranchBudget(12, least=4, most=32)
    for _ in range(200):
        budget.observe(is_hit=True, is_deep=False)
    assert budget.value == 4, "continuations came too late: fewer branches"
    budget.observe(is_hit=True, is_deep=True)
    for _ in range(200):
        budget.observe(is_hit=False, is_deep=False)
    assert budget.value == 32, "there was time: more branches"


def test_forgotten_times_give_way_to_new_ones():
    controller = adaptive()
    play(controller, acceptance_rate=0.7, pass_s=0.02, draft_s=0.002)
    before = controller.rate(1)
    controller.forget_times()
    assert controller.rate(1) == pytest.approx(before)
    play(controller, acceptance_rate=0.7, pass_s=0.04, draft_s=0.004, num_rounds=10)
    assert controller.rate(1) == pytest.approx(before / 2, rel=0.2)
