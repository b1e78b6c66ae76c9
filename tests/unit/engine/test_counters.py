"""Counters and metrics of a run whose course is written down."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from simulated.decoding import AUTOREGRESSIVE, Way, World, decode

from forerun.engine.config import SpeculativeConfig
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.plain import NoSpeculator
from forerun.engine.speculative.speculator import Speculation

VOCAB_SIZE = 10


def counting_up(text):
    """The target says the next number."""
    row = np.zeros(VOCAB_SIZE, np.float32)
    row[(text[-1] + 1) % VOCAB_SIZE] = 5
    return row


WORLD = World(target=counting_up, draft=counting_up, vocab_size=VOCAB_SIZE, num_sequences=1)
GREEDY = SamplingParams(temperature=0, max_tokens=12)
SCRIPTED = Way(method="scripted", num_speculative_tokens=3)


class Scripted(NoSpeculator):
    """Proposes what it is told."""

    def __init__(self, *speculations):
        self._speculations = list(speculations)

    def speculate(self, requests, limits):
        return [self._speculations.pop(0) if self._speculations else Speculation() for _ in requests]


def test_a_scripted_run():
    speculator = Scripted(
        Speculation(token_ids=(2, 3, 4), origin="cache_hit", is_hit=True),  # all accepted: 2 3 4 5
        Speculation(token_ids=(6, 0, 0), origin="cache_hit", is_hit=True),  # one accepted: 6 7
        Speculation(token_ids=(0,), origin="fallback", is_hit=False),  # none: 8
        Speculation(token_ids=(), origin="fallback", is_hit=False),  # 9
        Speculation(token_ids=(0, 1), origin="fallback", is_hit=None),  # both: 0 1 2
    )
    decoded = decode(WORLD, SCRIPTED, [[0]], GREEDY, speculator=speculator)
    assert decoded.requests[0].output_ids == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert decoded.requests[0].origins == [
        "target", "cache_hit", "cache_hit", "cache_hit", "target", "cache_hit",
        "target", "target", "target", "fallback", "fallback", "target",
    ]  # fmt: skip
    counters = decoded.counters
    assert (counters.num_tokens, counters.num_first_tokens) == (12, 1)
    assert (counters.num_rounds, counters.num_verifications) == (5, 5)
    assert (counters.num_proposed, counters.num_accepted) == (9, 6)
    assert (counters.num_hits, counters.num_look_ups) == (2, 4)
    assert counters.accepted_counts == Counter({3: 1, 1: 1, 0: 2, 2: 1})
    assert 0 < counters.hit_s < counters.decode_s
    metrics = counters.metrics(method="ssd", cores=2)
    assert metrics.acceptance_rate == pytest.approx(6 / 9)
    assert metrics.mean_acceptance_length == pytest.approx(11 / 5)
    assert metrics.cache_hit_rate == pytest.approx(2 / 4)
    assert 0 < metrics.non_verify_share < 1


def test_tokens_after_the_end_are_not_counted():
    world = replace(WORLD, eos_ids=(3,))
    decoded = decode(world, SCRIPTED, [[0]], GREEDY, speculator=Scripted(Speculation(token_ids=(2, 3, 4))))
    assert decoded.requests[0].output_ids == [1, 2, 3]
    assert decoded.requests[0].origins == ["target", "draft", "draft"]
    assert decoded.counters.num_accepted == 2
    assert decoded.counters.num_tokens == 3
    assert decoded.counters.metrics(method="ssd", cores=1).mean_acceptance_length == 2


def test_decoding_without_a_draft_accepts_nothing_and_emits_one_token_a_pass():
    metrics = decode(WORLD, AUTOREGRESSIVE, [[0], [4]], GREEDY).counters.metrics(method="none", cores=1)
    assert metrics.mean_acceptance_length == 1
    assert metrics.acceptance_rate == metrics.cache_hit_rate == metrics.non_verify_share_hit == 0
    assert metrics.num_engine_steps == 22


@pytest.mark.parametrize("method", ["sequential", "ssd"])
def test_a_perfect_draft_of_three_gives_four_tokens_a_pass(method):
    way = Way(method=method, num_speculative_tokens=3, speculative=SpeculativeConfig(fan_out="uniform"))
    decoded = decode(WORLD, way, [[0]], replace(GREEDY, max_tokens=41))
    metrics = decoded.counters.metrics(method=method, cores=1)
    assert metrics.num_engine_steps == 10
    assert metrics.mean_acceptance_length == 4
    assert metrics.acceptance_rate == 1
    assert metrics.cache_hit_rate == (1 if method == "ssd" else 0)
    assert decoded.requests[0].origins[1] == ("cache_hit" if method == "ssd" else "draft")


def test_a_draft_longer_than_allowed_is_an_error_of_the_speculator():
    with pytest.raises(AssertionError, match="longer than allowed"):
        decode(WORLD, SCRIPTED, [[0]], GREEDY, speculator=Scripted(Speculation(token_ids=(2, 3, 4, 5))))
