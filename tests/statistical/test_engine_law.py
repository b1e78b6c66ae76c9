"""Rungs 3 and 4 of losslessness through the engine core: the law of three tokens under rejection verification.

On Markov models in 3 tokens the law of an output is a product that can be written down. Each check is a chi-square test
over the 27 outputs with a false-alarm probability of 1e-4. With 1,600 outputs it finds a law that is off by a
chi-square distance of 0.047 (a total variation of about 0.09) nine times in ten; the negative controls run it on
faults of the kinds that an engine may have. Seeds are fixed. (The pure verifiers are tested with more power elsewhere,
and by enumeration; here the plumbing is under test: which law, which branch, which noise.)
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from simulated.decoding import Way, World, decode
from simulated.models import markov_law

from forerun.core.rng import uniform
from forerun.engine.config import SpeculativeConfig
from forerun.engine.constraint import Constraint
from forerun.engine.law import ProcessedLaw
from forerun.engine.logits import LogitsProcessor
from forerun.engine.sampling import SamplingParams

pytestmark = pytest.mark.statistical
VOCAB_SIZE, LENGTH, NUM_RUNS = 3, 3, 1600
PROMPT = [2, 0]
EVERY_TRIPLE = [2, 2, 2, 1, 2, 2, 0, 2, 1, 1, 2, 1, 0, 2, 0, 1, 2, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 2, 2, 0]
"""A prompt in which each three tokens occur, so that a draft always has something to copy; it ends as PROMPT does."""
WORLD = World(
    target=markov_law(VOCAB_SIZE, seed=1, spread=0.7),
    draft=markov_law(VOCAB_SIZE, seed=7, spread=0.7),
    vocab_size=VOCAB_SIZE,
    num_sequences=16,
    capacity=16,
)
NO_TWO_A = Constraint.regex("a?(ba?)*")
PARAMS = SamplingParams(temperature=0.9, max_tokens=LENGTH + 1)


def config(**changes):
    return SpeculativeConfig(**({"verification": "rejection", "fan_out": "uniform"} | changes))


def output_law(params, world=WORLD):
    """The law of the first tokens; an output that ends early is filled up with its end token."""
    law = np.zeros((VOCAB_SIZE,) * LENGTH)
    for output in itertools.product(range(VOCAB_SIZE), repeat=LENGTH):
        probability = 1.0
        for place, token in enumerate(output):
            before = list(output[:place])
            ended = any(t in world.eos_ids and i >= params.min_tokens for i, t in enumerate(before))
            if ended:
                probability *= token == before[-1]
                continue
            if probability == 0:  # beyond what a constraint allows there is no law
                break
            constraint = world.constraint(params)
            processor = LogitsProcessor(params, PROMPT, world.eos_ids, VOCAB_SIZE, constraint=constraint)
            row = world.target((*PROMPT, *before))
            probability *= processor.process(row, before).dense_probs()[token]
        law[output] = probability
    return law


def counts_of(
    way, params, world=WORLD, *, prompt=PROMPT, seed=11, num_runs=NUM_RUNS, wrap=lambda speculator: speculator
):
    decoded = decode(
        world,
        way,
        [prompt] * num_runs,
        replace(params, seed=seed),
        speculator=wrap(way.speculator(world)),
    )
    counts = np.zeros((VOCAB_SIZE,) * LENGTH)
    for request in decoded.requests:
        output = request.output_ids[:LENGTH]
        counts[tuple(output + output[-1:] * (LENGTH - len(output)))] += 1
    return counts, decoded.counters


def late(passes):
    """A drafter that gets this far before each look, in turn."""
    turns = itertools.cycle(passes)
    return lambda: next(turns)


SSD = Way(method="ssd", num_speculative_tokens=2, speculative=config(), branch_budget=9)
WAYS = {
    "autoregressive": Way(method="none", speculative=config()),
    "sequential": Way(method="sequential", num_speculative_tokens=2, speculative=config()),
    "n-gram": Way(method="ngram", num_speculative_tokens=2, speculative=config()),
    "ssd, all hits": SSD,
    "ssd, some hits": replace(SSD, branch_budget=2),
    "ssd, late, neural fallback": replace(SSD, branch_budget=2, progress=late([0, 2, 0, 3, 5, -1])),
    "ssd, n-gram fallback": replace(SSD, branch_budget=1, speculative=config(fallback="ngram")),
    "ssd, no fallback": replace(SSD, branch_budget=2, speculative=config(fallback="none"), progress=late([9, 3, 0])),
    "ssd, Saguaro C=0.3": replace(SSD, branch_budget=3, speculative=config(saguaro_c=0.3), progress=late([9, 0, 4])),
    "ssd, Saguaro C=0, measured": replace(
        SSD, branch_budget=1, speculative=config(saguaro_c=0.0, fan_out="measured"), progress=late([9, 0, 4, 2])
    ),
    "ssd, coupled": replace(SSD, branch_budget=2, speculative=config(verification="coupled"), progress=late([9, 0, 4])),
}


@pytest.mark.parametrize("name", WAYS)
def test_law_of_the_first_tokens(name, assert_law):
    counts, counters = counts_of(WAYS[name], PARAMS)
    assert_law(counts, output_law(PARAMS), seed=11)
    hit_rate = counters.num_hits / counters.num_look_ups if counters.num_look_ups else None
    if name == "ssd, all hits":
        assert hit_rate > 0.99
    elif name.startswith("ssd"):
        assert 0.05 < hit_rate < 0.99, f"hit rate {hit_rate}: the scenario must hold hits and misses"


@pytest.mark.parametrize(
    "params",
    [
        replace(PARAMS, top_k=2),
        replace(PARAMS, top_p=0.7),
        replace(PARAMS, min_p=0.5),
        replace(PARAMS, repetition_penalty=1.6, presence_penalty=0.5, frequency_penalty=0.3),
        replace(PARAMS, logit_bias={0: 0.7, 2: -0.5}, constraint=NO_TWO_A),
        replace(PARAMS, min_tokens=2),
    ],
    ids=["top_k", "top_p", "min_p", "penalties", "logit_bias and a constraint", "min_tokens and two ends"],
)
def test_law_under_sampling_parameters(params, assert_law):
    world = replace(WORLD, eos_ids=(1, 2)) if params.min_tokens else WORLD
    if params.constraint is not None:
        pytest.importorskip("llguidance")
        world = replace(WORLD, eos_ids=(2,), token_bytes=(b"a", b"b", b""))
    counts, _ = counts_of(WAYS["ssd, late, neural fallback"], params, world)
    assert_law(counts, output_law(params, world), seed=11)


def test_law_with_a_reduced_draft_vocabulary(assert_law):
    counts, _ = counts_of(WAYS["ssd, late, neural fallback"], PARAMS, replace(WORLD, draft_ids=(0, 2)))
    assert_law(counts, output_law(PARAMS), seed=11)


@pytest.mark.parametrize("name", ["sequential", "ssd, late, neural fallback"])
def test_law_when_the_draft_copies_from_its_context(name, assert_law):
    counts, _ = counts_of(WAYS[name], PARAMS, replace(WORLD, capacity=48), prompt=EVERY_TRIPLE)
    assert_law(counts, output_law(PARAMS), seed=11)


@pytest.mark.filterwarnings("ignore:the simulated drafter is dead")
def test_law_when_the_drafter_dies_under_way(assert_law):
    counts, _ = counts_of(replace(SSD, dies_after=NUM_RUNS), PARAMS)
    assert_law(counts, output_law(PARAMS), seed=11)


class Altered:
    """A speculator with a fault: an override of one of its methods."""

    def __init__(self, speculator, **overrides):
        self._speculator = speculator
        for name, override in overrides.items():
            setattr(self, name, lambda *arguments, override=override: override(speculator, *arguments))

    def __getattr__(self, name):
        return getattr(self._speculator, name)


def flat(law):
    return ProcessedLaw(vocab_size=VOCAB_SIZE, ids=None, scores=np.zeros(VOCAB_SIZE, np.float32))


def wrong_law(speculator, request, speculation):
    return [flat(law) for law in speculator.laws(request, speculation)]


def laws_of_another_place(speculator, request, speculation):
    return list(reversed(speculator.laws(request, speculation)))


def chosen_by_the_verifiers_noise(speculator, requests, limits):
    """Knows the noise that will accept: it proposes its least likely token just when that would be taken."""
    speculations = speculator.speculate(requests, limits)
    altered = []
    for request, speculation in zip(requests, speculations, strict=True):
        position = len(request.prompt_ids) + len(request.output_ids)
        will_accept = uniform(request.params.seed, request.number, position, "accept") < 0.3
        altered.append(replace(speculation, token_ids=(1,) if will_accept and speculation.token_ids else ()))
    return altered


@pytest.mark.parametrize(
    ("way", "overrides"),
    [
        ("sequential", {"laws": wrong_law}),
        ("ssd, some hits", {"laws": wrong_law}),
        ("sequential", {"laws": laws_of_another_place}),
        ("sequential", {"speculate": chosen_by_the_verifiers_noise, "laws": lambda s, r, x: [None] * len(x.token_ids)}),
    ],
    ids=["flat law, sequential", "flat law, ssd", "laws in wrong order", "peeks at the noise"],
)
def test_a_speculator_that_lies_is_caught(way, overrides, assert_not_law):
    counts, _ = counts_of(WAYS[way], PARAMS, wrap=lambda speculator: Altered(speculator, **overrides))
    assert_not_law(counts, output_law(PARAMS))


def test_a_cache_that_returns_the_laws_of_another_branch_is_caught(assert_not_law):
    """The branch's tokens are another outcome's, but the laws those of the outcome that came."""

    def broken(speculator):
        drafter = speculator._drafter
        look_up = drafter.cache.look_up

        def other_branch(request, round_number, *, num_accepted, token):
            hit = look_up(request, round_number, num_accepted=num_accepted, token=token)
            other = look_up(request, round_number, num_accepted=num_accepted, token=(token + 1) % VOCAB_SIZE)
            return hit if hit is None or other is None else hit._replace(tokens=other.tokens)

        drafter.cache.look_up = other_branch
        return speculator

    counts, _ = counts_of(SSD, PARAMS, wrap=broken)
    assert_not_law(counts, output_law(PARAMS))


def test_sample_size_is_enough_for_every_cell():
    law = output_law(PARAMS)
    assert math.isclose(law.sum(), 1, abs_tol=1e-6)
    assert law.min() * NUM_RUNS > 5
