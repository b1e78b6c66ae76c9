"""The choice among ways to decode: each is tried, the fastest is kept, a near second is looked at again."""

from collections import Counter

import pytest

from forerun.engine.speculative.plain import NoSpeculator
from forerun.engine.speculative.ways import Way, choose_way


class Rated:
    """A controller whose rate is known once its way was used."""

    def __init__(self, tokens_per_s):
        self.tokens_per_s, self.is_used = tokens_per_s, False

    def num_speculative_tokens(self, num_requests):
        return 0

    def observe(self, *, proposed, accepted, round_s):
        raise NotImplementedError

    def rate(self, num_requests):
        return self.tokens_per_s if self.is_used else None


def ways(**rates):
    return [
        Way(method=method, speculator=NoSpeculator(), controller=Rated(rate), num_threads=1, pinned_to=(), num_cores=1)
        for method, rate in rates.items()
    ]


def choices(some, num_calls=240):
    chosen = []
    for call in range(num_calls):
        way = choose_way(some, num_calls=call, num_requests=1)
        way.controller.is_used = True
        chosen.append(way.method)
    return chosen


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
