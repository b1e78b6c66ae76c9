"""The controller finds the best draft length from what it measures, and the branch budget follows hits and depth."""

from dataclasses import replace

import pytest
from simulated.rounds import Machine, flat_then_rising, play

from forerun.engine.speculative.controller import Acceptance, AdaptiveController, BranchBudget, FixedController
from forerun.engine.speculative.load import Load

ALONE, FOUR = Load(num_requests=1, num_context=100), Load(num_requests=4, num_context=400)


def play_alone(controller, *, acceptance_rate, pass_s, draft_s, num_rounds=400):
    """Return the choices for one request, where rows cost nothing."""
    machine = Machine(pass_s=lambda num_rows: pass_s, draft_s=draft_s)
    return play(controller, machine, 1, acceptance_rate=acceptance_rate, num_rounds=num_rounds).chosen


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
    chosen = play_alone(adaptive(), acceptance_rate=acceptance_rate, pass_s=1.0, draft_s=draft_s)[200:]
    assert abs(sorted(chosen)[len(chosen) // 2] - best) <= 1


def test_a_draft_that_does_not_pay_is_switched_off_and_tried_again():
    chosen = play_alone(adaptive(), acceptance_rate=0.0, pass_s=1.0, draft_s=0.5)[100:]
    assert chosen.count(0) > 0.85 * len(chosen)
    assert any(chosen)
    assert 0 not in play_alone(adaptive(least_tokens=1), acceptance_rate=0.0, pass_s=1.0, draft_s=0.5)


def test_the_rate_is_tokens_over_time():
    controller = adaptive()
    assert controller.rate(ALONE) is None
    play_alone(controller, acceptance_rate=0.7, pass_s=0.02, draft_s=0.002)
    length = best_length(0.7, 0.02, 0.002)
    expected = sum(0.7**k for k in range(length + 1)) / (0.02 + 0.002 * length)
    assert controller.rate(ALONE) == pytest.approx(expected, rel=0.15)


def test_as_the_batch_grows_drafts_get_shorter_down_to_none():
    """Never more than 3% below no drafts at all, from the first round of a load never seen before."""
    controller = adaptive()
    alone = play(controller, Machine(pass_s=flat_then_rising, draft_s=2e-3), 1, num_rounds=100)
    assert sorted(alone.chosen)[50] >= 2
    for num_requests in (16, 4, 11, 2, 16):
        course = play(controller, Machine(pass_s=flat_then_rising, draft_s=5e-3), num_requests, num_rounds=200)
        assert course.rate() >= 0.97 * num_requests / flat_then_rising(num_requests), (num_requests, course.chosen)
        if num_requests >= 11:
            assert course.chosen.count(0) >= 190
            assert any(course.chosen), "tried again now and then"


def test_what_any_draft_costs_is_not_taken_for_the_cost_of_none():
    """Drafts of any length take 25 ms: known from one trial on, and remembered while there are few rounds without."""
    controller = adaptive()
    rising = Machine(pass_s=lambda num_rows: 1e-2 + 2.6e-3 * num_rows, any_draft_s=0.025)
    play(controller, replace(rising, any_draft_s=0.0), 4, num_rounds=100, acceptance_rate=0.9)
    for num_requests in (16, 12):
        course = play(controller, rising, num_requests, num_rounds=200)
        assert course.rate() >= 0.97 * num_requests / rising.pass_s(num_requests), course.chosen


def test_where_rows_are_free_many_requests_get_drafts():
    course = play(adaptive(), Machine(pass_s=lambda num_rows: 0.02 + 1e-5 * num_rows), 8, num_rounds=200)
    assert sorted(course.chosen)[100] >= 3
    assert course.rate() > 1.8 * 8 / 0.02


def test_a_machine_that_slows_down_is_no_reason_for_drafts():
    """What was timed of long drafts while it was fast must not make them look cheap now."""
    controller = adaptive()
    play(controller, Machine(pass_s=flat_then_rising), 16, num_rounds=60)
    slow = Machine(pass_s=lambda num_rows: 3 * flat_then_rising(num_rows))
    assert play(controller, slow, 16, num_rounds=100).chosen.count(0) >= 90


def chosen_with_newcomers(controller, *, every, reading_s, num_rounds):
    """Let drafts be right and nearly free but for one text of four that is new in every so many rounds, and is read."""
    chosen = []
    for number in range(num_rounds):
        length, is_new = controller.num_speculative_tokens(FOUR), number % every == every - 1
        chosen.append(length)
        forward_s = 0.02 + 1e-5 * length
        controller.observe(
            load=FOUR,
            proposed=[length] * 4,
            accepted=[length] * 4,
            round_s=forward_s + 1e-4 * length + (reading_s if is_new and length else 0.0),
            forward_s=forward_s,
            num_new=int(is_new),
        )
    return chosen


@pytest.mark.parametrize(("every", "least", "most"), [(3, 0, 0), (150, 3, 8)], ids=["often", "seldom"])
def test_what_a_draft_takes_to_read_new_texts_counts_as_often_as_they_come(every, least, most):
    chosen = chosen_with_newcomers(adaptive(), every=every, reading_s=0.5, num_rounds=200)
    assert least <= min(chosen[-20:]) <= max(chosen[-20:]) <= most


def test_newcomers_are_forgotten_with_the_times():
    """A controller that is asked to forget times must not take texts to come along a hundred times as often."""
    controller = adaptive()
    before = chosen_with_newcomers(controller, every=20, reading_s=0.03, num_rounds=400)[-1]
    controller.forget_times()
    assert controller.num_speculative_tokens(FOUR) == before >= 3


def test_ways_with_one_draft_share_what_is_known_of_it():
    acceptance = Acceptance(8)
    acceptance.observe(proposed=[2] * 50, accepted=[2] * 25 + [0] * 25)
    assert acceptance.expected_tokens(0) == 1
    assert acceptance.expected_tokens(1) == pytest.approx(1.5, abs=0.02)
    assert acceptance.expected_tokens(2) == pytest.approx(2.0, abs=0.05)


def test_a_fixed_length_stays():
    controller = FixedController(3)
    assert set(play_alone(controller, acceptance_rate=0.1, pass_s=1.0, draft_s=1.0)) == {3}
    assert controller.rate(ALONE) is None


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
    play_alone(controller, acceptance_rate=0.7, pass_s=0.02, draft_s=0.002)
    before = controller.rate(ALONE)
    controller.forget_times()
    assert controller.rate(ALONE) == pytest.approx(before)
    play_alone(controller, acceptance_rate=0.7, pass_s=0.04, draft_s=0.004, num_rounds=10)
    assert controller.rate(ALONE) == pytest.approx(before / 2, rel=0.2)
