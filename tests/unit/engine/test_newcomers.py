"""What the engine core tells a controller of requests whose texts a draft has not read."""

from dataclasses import dataclass, replace

import pytest
from simulated.decoding import Way, World

from forerun.engine.core import EngineCore
from forerun.engine.metrics import DecodeCounters
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.controller import FixedController
from forerun.engine.speculative.speculator import Speculator

PARAMS = SamplingParams(temperature=0, max_tokens=40, seed=0)


class Recording(FixedController):
    def __init__(self):
        super().__init__(1)
        self.new = []

    def observe(self, *, load, num_new=0, **measured):
        self.new.append((load.num_requests, num_new))


@dataclass(frozen=True)
class Drafting:
    speculator: Speculator
    controller: Recording


def counting_up(text):
    return [float(token == (text[-1] + 1) % 10) * 5 for token in range(10)]


@pytest.fixture
def world():
    return replace(World(target=counting_up, draft=counting_up, vocab_size=10), eos_ids=(), num_sequences=4)


def drafting(world):
    return Drafting(Way(method="sequential", num_speculative_tokens=1).speculator(world), Recording())


def test_requests_are_new_once_and_again_when_they_change_their_way(world):
    first, second = drafting(world), drafting(world)
    core = EngineCore(world.target_model(), verification="coupled", counters=DecodeCounters())
    requests = world.requests([[0], [1], [2]], [PARAMS] * 3)
    for request in requests[:2]:
        core.add_request(request, first)
    while len(first.controller.new) < 3:
        core.step()
    core.add_request(requests[2], first)
    while len(first.controller.new) < 5:
        core.step()
    assert first.controller.new == [(2, 2), (2, 0), (2, 0), (3, 1), (3, 0)]
    for request in requests:
        core.switch(request, second)
    while len(second.controller.new) < 2:
        core.step()
    assert second.controller.new == [(3, 3), (3, 0)]


def test_who_comes_in_rounds_of_several_ways_is_new_in_the_next_round_of_one(world):
    """Of rounds of several ways no controller learns anything."""
    first, second = drafting(world), drafting(world)
    core = EngineCore(world.target_model(), verification="coupled", counters=DecodeCounters())
    requests = world.requests([[0], [1], [2]], [PARAMS, replace(PARAMS, max_tokens=6), PARAMS])
    core.add_request(requests[0], first)
    while not first.controller.new:
        core.step()
    core.add_request(requests[1], second)
    core.add_request(requests[2], first)
    while requests[1].finish_reason is None:
        core.step()
    core.step()
    assert first.controller.new == [(1, 1), (2, 1)]
    assert second.controller.new == []
