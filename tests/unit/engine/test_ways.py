"""The choice among ways to decode: each is tried, the fastest is kept, a near second is looked at again."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from forerun.engine.speculative.controller import Acceptance, AdaptiveController
from forerun.engine.speculative.load import Load
from forerun.engine.speculative.plain import NoSpeculator
from forerun.engine.speculative.ways import Way, WayChooser

ALONE, FOUR = Load(num_requests=1, num_context=100), Load(num_requests=4, num_context=400)


class Rated:
    """A controller whose rate is known once its way was used."""

    def __init__(self, tokens_per_s):
        self.tokens_per_s, self.is_used = tokens_per_s, False

    def num_speculative_tokens(self, load):
        return 0

    def observe(self, **times):
        raise AssertionError("a choice observes nothing")

    def rate(self, load):
        return self.tokens_per_s if self.is_used else None

    def forget_times(self):
        """Nothing to forget."""


def ways(**rates):
    return [
        Way(method=method, speculator=NoSpeculator(), controller=Rated(rate), num_threads=1, pinned_to=(), num_cores=1)
        for method, rate in rates.items()
    ]


def calls(chooser, num_calls):
    chosen = []
    for _ in range(num_calls):
        way = chooser.choose(ALONE)
        way.controller.is_used = True
        chosen.append(way.method)
    return chosen


def choices(some, num_calls=240):
    return calls(WayChooser(some), num_calls)


def set_rate(way, tokens_per_s):
    way.controller.tokens_per_s = tokens_per_s


def test_each_is_tried_in_order_and_the_fastest_kept():
    chosen = choices(ways(ssd=100.0, sequential=140.0))
    assert chosen[:3] == ["ssd", "sequential", "sequential"]
    assert chosen.count("ssd") <= 0.05 * len(chosen)


def test_a_near_second_is_looked_at_again():
    assert Counter(choices(ways(ssd=130.0, sequential=140.0)))["ssd"] > 5


def test_a_far_slower_one_is_not():
    assert Counter(choices(ways(ssd=60.0, sequential=140.0)))["ssd"] == 1


@pytest.mark.parametrize("order", [("ssd", "sequential"), ("sequential", "ssd")])
def test_the_order_decides_the_first_call_only(order):
    rates = {"ssd": 150.0, "sequential": 100.0}
    chosen = choices(ways(**{name: rates[name] for name in order}))
    assert chosen[0] == order[0]
    assert chosen[5] == "ssd"


def test_one_way_is_always_taken():
    assert set(choices(ways(none=10.0), num_calls=60)) == {"none"}


def test_times_measured_long_ago_decide_nothing():
    """A machine that slows down while the best way is in use slows the other way just as much."""
    some = ways(sequential=140.0, ssd=110.0)
    chooser = WayChooser(some)
    assert calls(chooser, 3) == ["sequential", "ssd", "sequential"]
    set_rate(some[0], 70.0)
    assert calls(chooser, 1) == ["ssd"]
    set_rate(some[1], 55.0)
    assert calls(chooser, 100).count("sequential") > 90


def test_a_way_that_became_faster_is_found_and_kept():
    some = ways(sequential=140.0, ssd=110.0)
    chooser = WayChooser(some)
    calls(chooser, 4)
    set_rate(some[1], 160.0)
    assert calls(chooser, 100)[20:].count("ssd") > 70


def test_a_dead_way_is_not_chosen_even_if_the_other_is_far_slower_until_it_is_back():
    some = ways(ssd=100.0, sequential=40.0)
    chooser = WayChooser(some)
    calls(chooser, 3)
    some[0].speculator.is_alive = False
    assert set(calls(chooser, 20)) == {"sequential"}
    some[0].speculator.is_alive = True
    assert "ssd" in calls(chooser, 50)


def test_the_last_way_stays():
    some = ways(ssd=100.0)
    chooser = WayChooser(some)
    some[0].speculator.is_alive = False
    assert chooser.choose(ALONE) is some[0]


def two_ways(*, ssd, sequential):
    """SSD, and SD with more threads; both were used."""
    some = ways(ssd=ssd, sequential=sequential)
    for way in some:
        way.controller.is_used = True
    return [some[0], replace(some[1], num_threads=2)]


def choices_for(load, chooser, num_calls):
    return [chooser.choose(load).method for _ in range(num_calls)]


def test_several_requests_get_the_threads_unless_another_way_is_expected_to_be_faster():
    some = two_ways(ssd=100.0, sequential=95.0)
    chooser = WayChooser(some)
    assert choices_for(FOUR, chooser, 50) == ["sequential"] * 50, "a machine's speed moves by as much"
    set_rate(some[0], 120.0)
    assert choices_for(FOUR, chooser, 2) == ["ssd", "ssd"]
    some[0].speculator.is_alive = False
    assert choices_for(FOUR, chooser, 2) == ["sequential"] * 2


def test_nothing_known_is_no_promise():
    some = two_ways(ssd=100.0, sequential=20.0)
    some[0].controller.is_used = False
    assert choices_for(FOUR, WayChooser(some), 20) == ["sequential"] * 20


def test_a_promise_has_to_be_kept():
    """What was timed on a quiet machine promises much on a busy one: the trial tells, and trials get rare."""
    some = two_ways(ssd=130.0, sequential=100.0)
    chooser, chosen = WayChooser(some), []
    for _ in range(100):
        way = chooser.choose(FOUR)
        chosen.append(way.method)
        set_rate(some[0], 80.0 if way is some[0] else 130.0)
    trials = [place for place, method in enumerate(chosen) if method == "ssd"]
    assert trials[0] == 1, "first comes the way with the threads, so that there is something to compare with"
    gaps = [later - earlier for earlier, later in itertools.pairwise(trials)]
    assert gaps == [3, 5, 9, 17, 33], "one call each, and one by which the usual way is timed anew"


def test_a_way_that_keeps_its_promise_stays_and_the_usual_one_is_timed_again():
    some = two_ways(ssd=130.0, sequential=100.0)
    chosen = choices_for(FOUR, WayChooser(some), 100)
    assert chosen[0] == "sequential"
    assert chosen.count("ssd") >= 75
    assert "sequential" in chosen[50:]


def test_other_numbers_of_requests_begin_with_the_threads():
    some = two_ways(ssd=130.0, sequential=100.0)
    chooser = WayChooser(some)
    assert choices_for(FOUR, chooser, 3)[-1] == "ssd"
    assert choices_for(Load(num_requests=16, num_context=1600), chooser, 2) == ["sequential", "ssd"]
    chooser.choose(ALONE)
    assert chooser.choose(FOUR).method == "sequential"


def test_what_was_timed_over_short_texts_promises_nothing_over_long_ones():
    """SSD was half as fast again over short texts; it has one thread, and nobody knows what long ones cost it."""
    short, long = (Load(num_requests=16, num_context=16 * length) for length in (100, 900))

    def timed(rounds):
        controller = AdaptiveController(Acceptance(8), least_tokens=0, max_tokens=8, initial=4)
        for load, round_s in rounds:
            controller.observe(
                load=load, proposed=[0] * 16, accepted=[0] * 16, round_s=round_s, forward_s=0.95 * round_s
            )
        return controller

    ssd, sequential = ways(ssd=0.0, sequential=0.0)
    ssd = replace(ssd, controller=timed([(short, 0.03)] * 20))
    sequential = replace(sequential, controller=timed([(short, 0.045)] * 20 + [(long, 0.09)] * 20), num_threads=2)
    chooser = WayChooser([ssd, sequential])
    assert choices_for(short, chooser, 2)[-1] == "ssd"
    assert choices_for(long, chooser, 2)[-1] == "sequential"
    ssd = replace(ssd, controller=timed([(short, 0.03)] * 20 + [(long, 0.06)] * 20))
    assert choices_for(long, WayChooser([ssd, sequential]), 2)[-1] == "ssd", "once it was timed there, it is tried"
