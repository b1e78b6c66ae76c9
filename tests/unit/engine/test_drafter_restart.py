"""A drafter that has ended is started again: when, how often, and that drafts go on with the same output."""

import warnings
from dataclasses import replace

import pytest
from simulated.decoding import AUTOREGRESSIVE, Way, World, decode
from simulated.models import history_law, markov_law, mixture_law

from forerun.core.errors import DrafterError
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.drafter_restart import DrafterRestarts, RestartConfig


class FakeDrafter:
    def __init__(self):
        self.is_loaded, self.has_ended, self.is_closed = False, False, False

    def is_ready(self):
        if self.has_ended:
            raise DrafterError("it ended while it was loading")
        return self.is_loaded

    def close(self):
        self.is_closed = True


class Setting:
    def __init__(self, **options):
        self.now_s = 0.0
        self.started = []
        config = RestartConfig(**({"first_pause_s": 1.0, "max_tries": 3, "timeout_s": 10.0} | options))
        self.restarts = DrafterRestarts(self._start, config, now=lambda: self.now_s)

    def _start(self):
        self.started.append(FakeDrafter())
        return self.started[-1]

    def poll(self, *, after_s=0.0):
        self.now_s += after_s
        return self.restarts.poll()


def test_pauses_grow_and_tries_end():
    some = Setting()
    assert some.restarts.lose()
    for number, pause_s in enumerate((1.0, 2.0, 4.0), start=1):
        assert some.poll(after_s=pause_s - 0.1) is None
        assert len(some.started) == number - 1
        assert some.poll(after_s=0.2) is None
        assert len(some.started) == number
        some.started[-1].has_ended = True
        some.poll()
        assert some.started[-1].is_closed
    assert some.poll(after_s=1000.0) is None
    assert len(some.started) == 3


def test_a_drafter_is_handed_over_once_it_has_loaded():
    some = Setting()
    some.restarts.lose()
    assert some.poll(after_s=1.5) is None
    some.started[0].is_loaded = True
    assert some.poll(after_s=5.0) is some.started[0]
    assert some.poll(after_s=500.0) is None
    assert len(some.started) == 1


def test_one_that_takes_too_long_gives_way_to_the_next():
    some = Setting()
    some.restarts.lose()
    some.poll(after_s=1.5)
    some.poll(after_s=10.5)
    assert some.started[0].is_closed
    some.poll(after_s=2.5)
    assert len(some.started) == 2


def test_one_that_ran_well_for_a_while_was_no_failure():
    some = Setting(max_tries=1, healthy_s=30.0)
    for _ in range(3):
        assert some.restarts.lose()
        some.poll(after_s=1.5)
        some.started[-1].is_loaded = True
        assert some.poll() is some.started[-1]
        some.now_s += 31.0
    assert some.restarts.lose()
    some.poll(after_s=1.5)
    some.started[-1].is_loaded = True
    some.poll()
    assert not some.restarts.lose(), "it ended at once"


def test_nothing_is_started_after_the_end():
    some = Setting()
    some.restarts.lose()
    some.poll(after_s=1.5)
    some.restarts.close()
    assert some.started[0].is_closed
    assert some.poll(after_s=100.0) is None
    assert len(some.started) == 1


def test_without_tries_there_are_none():
    some = Setting(max_tries=0)
    assert not some.restarts.lose()
    assert some.poll(after_s=100.0) is None


LAW = mixture_law((0.6, history_law(12, seed=1)), (1.0, markov_law(12, seed=2, spread=2.5)))
WORLD = World(target=LAW, draft=mixture_law((1.0, LAW), (0.3, history_law(12, seed=3))), vocab_size=12, capacity=96)


@pytest.mark.parametrize(
    ("temperature", "reads", "dies_after"),
    [(0.0, "states", 13), (0.9, "nothing", 14), (0.0, "nothing", 5), (0.9, "features", 13)],
)
def test_drafters_that_die_again_and_again_change_nothing_but_the_speed(temperature, reads, dies_after):
    """Requests in the midst of their text, and those before their first token, go on with the next drafter."""
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6], [5], [3, 5, 8, 9]]
    params = SamplingParams(temperature=temperature, seed=7, max_tokens=30, ignore_eos=True)
    expected = decode(replace(WORLD, num_sequences=1), AUTOREGRESSIVE, prompts, params).outputs
    at_once = RestartConfig(first_pause_s=0.0, max_tries=1000)
    way = Way(method="ssd", dies_after=dies_after, restarts=at_once, reads=reads)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = decode(WORLD, way, prompts, params)
    assert got.outputs == expected
    assert len(caught) > 1, "several drafters died"
    assert got.counters.num_accepted > 3 * dies_after, "those after the first one drafted too"
