"""Ends of requests through the engine core: the same under every method, wherever a round happens to end."""

from dataclasses import replace

import numpy as np
import pytest
from simulated.decoding import Way, World, decode

from forerun.engine.config import SpeculativeConfig
from forerun.engine.core import EngineCore
from forerun.engine.metrics import DecodeCounters
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.controller import FixedController

WORDS = (b"One", b" two", b" three\n", b" \xe2", b"\x82", b"\xac", b" end", b"<eos>", b"<end>", b" nine")


def counting_up(text):
    row = np.linspace(0, 1, len(WORDS), dtype=np.float32)
    row[(text[-1] + 1) % len(WORDS)] = 5
    return row


WORLD = World(target=counting_up, draft=counting_up, vocab_size=10, eos_ids=(7, 8), token_bytes=WORDS)
METHODS = [
    Way(method="none"),
    Way(method="ngram"),
    *(Way(method="sequential", num_speculative_tokens=k) for k in (1, 2, 5)),
    *(Way(method="ssd", num_speculative_tokens=k) for k in (1, 2, 5)),
    Way(method="ssd", num_speculative_tokens=4, branch_budget=1, speculative=SpeculativeConfig(fallback="none")),
]


def greedy(**changes):
    return SamplingParams(**({"temperature": 0, "max_tokens": 30} | changes))


@pytest.fixture(params=METHODS, ids=lambda way: f"{way.method}-{way.num_speculative_tokens}")
def way(request) -> Way:
    return request.param


@pytest.mark.parametrize(
    ("params", "num_tokens", "text", "finish_reason"),
    [
        (greedy(), 7, " two three\n € end", "stop"),
        (greedy(ignore_eos=True, max_tokens=9), 9, " two three\n € end<eos><end> nine", "length"),
        (greedy(max_tokens=1), 1, " two", "length"),
        (greedy(max_tokens=4), 4, " two three\n �", "length"),
        (greedy(stop=("o th",)), 2, " tw", "stop"),
        (greedy(stop=("ee\n €",)), 5, " two thr", "stop"),
        (greedy(stop=("€",)), 5, " two three\n ", "stop"),
        (greedy(stop=("end!", "en")), 6, " two three\n € ", "stop"),
        (greedy(stop_token_ids=(2,)), 2, " two", "stop"),
        (greedy(min_tokens=7, max_tokens=8), 8, None, None),
        (greedy(min_tokens=3, stop=("two",)), 7, " two three\n € end", "stop"),
        (greedy(max_tokens=7), 7, " two three\n € end", "stop"),
    ],
)
def test_where_a_request_ends(way, params, num_tokens, text, finish_reason):
    decoded = decode(WORLD, way, [[0]], params)
    (request,) = decoded.requests
    assert len(request.output_ids) == num_tokens
    assert "".join(chunk.text for chunk in decoded.chunks) == request.text
    assert [token for chunk in decoded.chunks for token in chunk.token_ids] == request.output_ids
    assert [chunk.finish_reason for chunk in decoded.chunks[:-1]] == [None] * (len(decoded.chunks) - 1)
    assert decoded.chunks[-1].finish_reason == request.finish_reason
    if text is not None:
        assert (request.text, request.finish_reason) == (text, finish_reason)


def test_an_end_before_min_tokens_is_not_even_drawn(way):
    (request,) = decode(WORLD, way, [[0]], greedy(min_tokens=9, max_tokens=20)).requests
    assert not {7, 8} & set(request.output_ids[:9])


def test_the_last_tokens_of_the_context_are_used(way):
    world = replace(WORLD, capacity=12, eos_ids=())
    decoded = decode(world, way, [[0], [1, 2, 3], [*range(10), 0]], greedy(max_tokens=None))
    assert [len(request.output_ids) for request in decoded.requests] == [11, 9, 1]
    assert {request.finish_reason for request in decoded.requests} == {"length"}


def test_logprobs_are_those_of_decoding_without_a_draft(way):
    params = greedy(logprobs=3, frequency_penalty=0.5)
    expected = decode(WORLD, METHODS[0], [[0]], params).requests[0].logprobs
    got = decode(WORLD, way, [[0]], params).requests[0].logprobs
    assert got == expected
    assert [len(entry.top) for entry in got] == [3] * 7


def test_closing_a_stream_lets_the_speculator_forget(way):

    requests = WORLD.requests([[0], [1], [2]], [greedy()] * 3)
    speculator = way.speculator(WORLD)
    core = EngineCore(WORLD.target_model(), verification="coupled", counters=DecodeCounters())
    stream = core.run(requests, speculator, FixedController(way.num_speculative_tokens))
    for _ in range(4):
        next(stream)
    stream.close()
    again = decode(WORLD, way, [[4], [0]], greedy(), speculator=speculator)
    assert again.outputs == decode(WORLD, METHODS[0], [[4], [0]], greedy()).outputs
