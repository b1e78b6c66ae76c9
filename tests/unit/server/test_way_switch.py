"""Which way a request decodes: its own, or the one chosen for all that leave it open."""

import pytest

from forerun.core.errors import RequestError
from forerun.engine.server.way_switch import WaySwitch


class FakeWay:
    def __init__(self, method, num_threads):
        self.method, self.num_threads, self.num_entered = method, num_threads, 0

    def enter(self):
        self.num_entered += 1


class FakeRequest:
    num_computed_tokens = 7

    def __init__(self, index):
        self.index = index


class FakeCore:
    def __init__(self):
        self.switched = []

    def switch(self, request, way):
        self.switched.append((request.index, way.method))


class Setting:
    def __init__(self, default="auto"):
        self.none, self.sd, self.ssd = FakeWay("none", 2), FakeWay("sequential", 2), FakeWay("ssd", 1)
        self.best = self.ssd
        self.asked = []
        self.core = FakeCore()
        self.switch = WaySwitch([self.ssd, self.sd, self.none], default=default, choose=self._choose)

    def _choose(self, load):
        assert load.num_context == 7 * load.num_requests
        self.asked.append(load.num_requests)
        return self.best

    def rounds(self, number):
        for _ in range(number):
            self.switch.before_step(self.core)


def test_open_requests_move_together_and_only_after_rounds_of_their_own():
    some = Setting()
    requests = [FakeRequest(index) for index in range(3)]
    assert [some.switch.way_for(request, None) for request in requests] == [some.ssd] * 3
    assert some.asked == [1], "asked once, when work begins"
    some.rounds(5)
    assert (some.asked, some.core.switched) == ([1, 3], [(index, "ssd") for index in range(3)]), "now they are many"
    some.best = some.sd
    some.core.switched.clear()
    some.rounds(64)
    assert some.core.switched == []
    some.rounds(1)
    assert (some.asked, some.core.switched) == ([1, 3, 3], [(index, "sequential") for index in range(3)])
    assert some.switch.num_requests() == {"ssd": 0, "sequential": 3, "none": 0}


def test_a_load_that_changes_for_a_moment_changes_nothing():
    some = Setting()
    first, second = FakeRequest(0), FakeRequest(1)
    some.switch.way_for(first, None)
    for _ in range(10):
        some.switch.way_for(second, None)
        some.rounds(4)
        some.switch.forget(second)
        some.rounds(2)
    assert some.asked == [1]


def test_rounds_that_others_took_part_in_say_nothing():
    some = Setting()
    some.switch.way_for(FakeRequest(0), None)
    fixed = FakeRequest(1)
    assert some.switch.way_for(fixed, "none") is some.none
    some.rounds(200)
    assert some.asked == [1]
    some.switch.forget(fixed)
    some.rounds(65)
    assert some.asked == [1, 1]


def test_threads_are_those_of_the_way_that_needs_its_core():
    some = Setting()
    requests = [FakeRequest(index) for index in range(2)]
    some.switch.way_for(requests[0], "sequential")
    some.rounds(3)
    assert (some.sd.num_entered, some.ssd.num_entered) == (1, 0)
    some.switch.way_for(requests[1], "ssd")
    some.rounds(3)
    assert (some.sd.num_entered, some.ssd.num_entered) == (1, 1)
    some.switch.forget(requests[1])
    some.rounds(3)
    assert (some.sd.num_entered, some.ssd.num_entered) == (2, 1)


def test_a_server_of_one_method_leaves_nothing_open():
    some = Setting(default="sequential")
    assert some.switch.way_for(FakeRequest(0), None) is some.sd
    assert some.asked == []
    assert some.switch.way_for(FakeRequest(1), "auto") is some.ssd


def test_a_method_that_is_not_ready_is_refused_with_those_that_are():
    switch = WaySwitch([FakeWay("none", 1)], default="none", choose=lambda _: None)
    switch.check("auto")
    with pytest.raises(RequestError, match="none, auto ready"):
        switch.check("ssd")
