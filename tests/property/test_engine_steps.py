"""Requests that come, go, wait, are preempted and change their method between any two passes: the output is AR's.

The engine core runs step by step over simulated models that look at every token a row sees, so a wrong slot, copy or
roll-back changes the output or is refused.
"""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.decoding import AUTOREGRESSIVE, Way, World, decode
from simulated.models import history_law, markov_law, mixture_law

from forerun.core.errors import ConfigError
from forerun.engine.config import SpeculativeConfig
from forerun.engine.core import EngineCore
from forerun.engine.metrics import DecodeCounters
from forerun.engine.sampling import SamplingParams
from forerun.engine.scheduler import SchedulerConfig
from forerun.engine.speculative.controller import FixedController

VOCAB_SIZE = 12
TARGET = mixture_law((0.6, history_law(VOCAB_SIZE, seed=1)), (1.0, markov_law(VOCAB_SIZE, seed=2, spread=2.5)))
NEAR = mixture_law((1.0, TARGET), (0.5, history_law(VOCAB_SIZE, seed=3)))
WORLD = World(target=TARGET, draft=NEAR, vocab_size=VOCAB_SIZE, eos_ids=(0,), capacity=96)
STEM = [3, 1, 4, 1, 5, 9, 2, 6] * 5
PROMPTS = [[3], STEM[:17], STEM[:34], [*STEM[:32], 7, 7], [2, 7, 1], [*STEM[:16], 8]]
PARAMS = [SamplingParams(temperature=(index % 2) * 0.9, seed=index, max_tokens=12) for index in range(len(PROMPTS))]


class Drafting:
    def __init__(self, way, world, target):
        self.speculator = way.speculator(world, target)
        self.controller = FixedController(0 if way.method == "none" else way.num_speculative_tokens)


class Steps:
    """An engine core with every method at hand."""

    def __init__(self, *, num_sequences=2, budget=24, reads="nothing", progress=None, block_tokens=16, **options):
        world = replace(WORLD, num_sequences=num_sequences, block_tokens=block_tokens)
        self.target = world.target_model()
        self.counters = DecodeCounters()
        self.core = EngineCore(
            self.target,
            verification="coupled",
            counters=self.counters,
            scheduler=SchedulerConfig(max_num_seqs=num_sequences, max_num_batched_tokens=budget, **options),
            layer_ids=[0],
        )
        common = {"reads": reads} | ({"progress": progress} if progress else {})
        self.draftings = [
            Drafting(Way(method=method, **({} if method in {"none", "ngram"} else common)), world, self.target)
            for method in ("none", "ngram", "sequential", "ssd")
        ]
        self.requests = WORLD.requests(PROMPTS, PARAMS)
        for index, request in enumerate(self.requests):
            request.number = index
        self.streamed = {request.index: ("", []) for request in self.requests}

    def take(self, chunks):
        for chunk in chunks:
            if chunk is not None:
                text, tokens = self.streamed[chunk.index]
                self.streamed[chunk.index] = (text + chunk.text, tokens + list(chunk.token_ids))

    def finish(self):
        for _ in range(1000):
            if not self.core.has_work:
                break
            self.take(self.core.step())
            self.core.check_integrity()
        assert not self.core.has_work


EXPECTED = decode(replace(WORLD, num_sequences=1), AUTOREGRESSIVE, PROMPTS, PARAMS).outputs


def assert_outputs(steps, aborted=()):
    for request in steps.requests:
        tokens, text, reason = EXPECTED[request.index]
        assert steps.streamed[request.index] == (request.text, request.output_ids)
        if request.index in aborted:
            assert request.output_ids == tokens[: len(request.output_ids)]
            assert text.startswith(request.text)
        else:
            assert (request.output_ids, request.text, request.finish_reason) == (tokens, text, reason)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_output_does_not_depend_on_who_comes_and_goes(data):
    pattern = random.Random(data.draw(st.integers(0, 2**32)))
    steps = Steps(
        num_sequences=data.draw(st.integers(1, 3)),
        budget=data.draw(st.sampled_from([3, 8, 24, 200])),
        reads=data.draw(st.sampled_from(["nothing", "states", "features"])),
        progress=lambda: pattern.choice([-1, 0, 1, 3, 9]),
        reuses_prefixes=data.draw(st.booleans()),
        preempts=data.draw(st.booleans()),
        block_tokens=data.draw(st.sampled_from([None, 4, 16])),
        max_cached_tokens=data.draw(st.sampled_from([None, WORLD.capacity])),
    )
    waiting = data.draw(st.permutations(steps.requests))
    aborted = set()
    added = []
    while waiting:
        action = data.draw(st.sampled_from(["add", "add", "step", "step", "abort", "switch"]))
        if action == "add":
            request = waiting.pop()
            request.priority = data.draw(st.integers(0, 2))
            added.append(request)
            steps.core.add_request(request, data.draw(st.sampled_from(steps.draftings)))
        elif action == "step":
            for _ in range(data.draw(st.integers(1, 4))):
                steps.take(steps.core.step())
        elif added:
            request = data.draw(st.sampled_from(added))
            is_over = request.finish_reason is not None
            if action == "switch" and not is_over:
                steps.core.switch(request, data.draw(st.sampled_from(steps.draftings)))
            elif action == "abort":
                chunk = steps.core.abort(request)
                assert (chunk is None) == is_over
                assert request.sequence == -1
                steps.take([chunk])
                if not is_over:
                    aborted.add(request.index)
        steps.core.check_integrity()
    steps.finish()
    assert_outputs(steps, aborted)


def test_methods_share_a_pass():
    """Four requests of four methods: rounds take as many passes as the slowest needs, not as all of them."""
    steps = Steps(num_sequences=4, budget=200)
    chosen = [steps.requests[index] for index in (0, 1, 4, 5)]
    for request, drafting in zip(chosen, steps.draftings, strict=True):
        steps.core.add_request(request, drafting)
    steps.finish()
    assert steps.counters.num_rounds <= max(len(request.output_ids) for request in chosen)
    assert steps.counters.num_verifications > steps.counters.num_rounds


@pytest.mark.parametrize("block_tokens", [None, 16])
def test_a_cached_prefix_is_not_run_again(block_tokens):
    steps = Steps(num_sequences=1, reuses_prefixes=True, block_tokens=block_tokens)
    first, second = steps.requests[2], steps.requests[3]
    for request in (first, second):
        steps.core.add_request(request, steps.draftings[2])
        steps.finish()
    assert steps.counters.num_prefilled == len(PROMPTS[2]) + len(PROMPTS[3]) - 32
    assert (second.output_ids, second.text, second.finish_reason) == EXPECTED[3]


def test_an_output_is_cached_as_a_prefix_too():
    steps = Steps(num_sequences=1, reuses_prefixes=True)
    params = SamplingParams(temperature=0, seed=0, max_tokens=24, ignore_eos=True)
    (first,) = WORLD.requests([PROMPTS[3]], [params])
    steps.core.add_request(first, steps.draftings[3])
    steps.finish()
    (longer,) = WORLD.requests([[*PROMPTS[3], *first.output_ids, 5]], [params])
    before = steps.counters.num_prefilled
    steps.core.add_request(longer, steps.draftings[0])
    steps.finish()
    assert steps.counters.num_prefilled - before == len(longer.prompt_ids) - 48
    assert longer.output_ids == decode(WORLD, AUTOREGRESSIVE, [longer.prompt_ids], params).requests[0].output_ids


def test_a_round_keeps_to_the_token_budget():
    steps = Steps(num_sequences=3, budget=5)
    widths = []
    forward = steps.target.forward
    steps.target.forward = lambda rows, **options: widths.append(len(rows)) or forward(rows, **options)
    for request in steps.requests[:3]:
        steps.core.add_request(request, steps.draftings[2])
    steps.finish()
    assert max(widths) == 5


def test_a_running_request_shares_its_blocks():
    """Of two requests that begin alike, the second computes nothing of the common blocks, and nothing is copied."""
    steps = Steps(num_sequences=2, budget=200, reuses_prefixes=True)
    steps.target.write_states = None
    first, second = steps.requests[2], steps.requests[3]
    steps.core.add_request(first, steps.draftings[0])
    steps.take(steps.core.step())
    assert steps.core.cache_usage == pytest.approx(3 / 12)
    steps.core.add_request(second, steps.draftings[0])
    steps.take(steps.core.step())
    assert steps.core.cache_usage == pytest.approx(4 / 12), "what both hold counts once"
    steps.finish()
    assert steps.counters.num_prefilled == len(PROMPTS[2]) + len(PROMPTS[3]) - 32
    assert_outputs(steps, aborted={request.index for request in steps.requests})


def test_without_room_for_all_someone_waits_and_nothing_is_lost():
    """Three texts that grow to more blocks than there are: they take turns."""
    steps = Steps(num_sequences=3, budget=200, block_tokens=4, max_cached_tokens=WORLD.capacity)
    params = SamplingParams(temperature=0, seed=0, max_tokens=60, ignore_eos=True)
    prompts = [STEM[:9], STEM[3:12], STEM[5:14]]
    requests = WORLD.requests(prompts, [params] * 3)
    for request in requests:
        steps.core.add_request(request, steps.draftings[2])
    steps.finish()
    assert steps.core.num_preempted > 0
    expected = decode(replace(WORLD, num_sequences=1), AUTOREGRESSIVE, prompts, params).outputs
    assert [(request.output_ids, request.text, request.finish_reason) for request in requests] == expected


def test_a_cache_too_small_for_one_request_is_refused():
    with pytest.raises(ConfigError, match="max_cached_tokens=95"):
        Steps(max_cached_tokens=WORLD.capacity - 1)


def test_abort_frees_the_sequence_before_the_next_pass():
    steps = Steps(num_sequences=1)
    first, second = steps.requests[1], steps.requests[4]
    steps.core.add_request(first, steps.draftings[3])
    steps.core.add_request(second, steps.draftings[3])
    steps.take(steps.core.step())
    assert (steps.core.running, steps.core.num_waiting) == ([first], 1)
    chunk = steps.core.abort(first)
    assert chunk is not None
    assert chunk.finish_reason == "cancelled"
    steps.core.step()
    assert (steps.core.running, steps.core.num_waiting) == ([second], 0)


def test_speculation_under_rejection_survives_a_change_of_method():
    """Laws come from the new way at once, so a draft of the old one is never verified with them."""
    config = SpeculativeConfig(verification="rejection")
    world = replace(WORLD, num_sequences=1)
    target = world.target_model()
    core = EngineCore(
        target,
        verification="rejection",
        counters=DecodeCounters(),
        scheduler=SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=64),
    )
    ways = [Drafting(Way(method=method, speculative=config), world, target) for method in ("sequential", "ssd")]
    (request,) = world.requests([PROMPTS[1]], [replace(PARAMS[1], max_tokens=30, ignore_eos=True)])
    core.add_request(request, ways[0])
    number = 0
    while core.has_work:
        core.step()
        number += 1
        if core.has_work:
            core.switch(request, ways[number % 2])
    assert len(request.output_ids) == 30
