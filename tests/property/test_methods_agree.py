"""Rung 1 to 3 of losslessness through the engine core: every method emits the very tokens of decoding without a draft.

Greedy, and with temperature under coupled verification, the output is a function of the target alone. So it must be
equal, token for token, whatever the draft, the fallback, the fan-out, the batch, and however far the drafter gets
between two looks at its cache. The models' logits depend on every token that a row sees (``simulated.models``).
"""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.decoding import AUTOREGRESSIVE, EveryLength, Way, World, decode
from simulated.models import history_law, markov_law, mixture_law

from forerun.engine.config import SpeculativeConfig
from forerun.engine.constraint import Constraint
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.fallback_length import OneLess

VOCAB_SIZE = 12
TEXT = history_law(VOCAB_SIZE, seed=1)
HABIT = markov_law(VOCAB_SIZE, seed=2, spread=2.5)
TARGET = mixture_law((0.6, TEXT), (1.0, HABIT))
NEAR = mixture_law((1.0, TARGET), (0.5, history_law(VOCAB_SIZE, seed=3)))
WORLD = World(target=TARGET, draft=NEAR, vocab_size=VOCAB_SIZE, eos_ids=(0, 7))
PERFECT = replace(WORLD, target=TEXT, draft=TEXT, eos_ids=())
PROMPTS = [[3], [5, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8], [1, 1, 1], [9, 8]]

CONSTRAINTS = [
    Constraint.regex("[a-f]{2,9}"),
    Constraint.regex("(bc|de)*k?"),
    Constraint.regex("(bcd|bce|b+c|k)+l"),
    Constraint.choice(["bcd", "bce", "kkk"]),
    Constraint.grammar('start: "b" start "c" | "d" | "k"+'),
]


def without_contradiction(params: SamplingParams) -> SamplingParams:
    is_endless = params.constraint is not None and params.ignore_eos and not params.stop_token_ids
    return replace(params, ignore_eos=False) if is_endless else params


sampling = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.8, 1.5]),
    top_k=st.sampled_from([0, 0, 5]),
    top_p=st.sampled_from([1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.4]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    logit_bias=st.sampled_from([{}, {4: 2.0, 5: float("-inf")}]),
    seed=st.integers(0, 2**64 - 1),
    stop=st.sampled_from([(), ("ab",), ("c", "dfg")]),
    stop_token_ids=st.sampled_from([(), (11,)]),
    min_tokens=st.sampled_from([0, 0, 6]),
    max_tokens=st.integers(6, 24),
    logprobs=st.sampled_from([None, 2]),
    ignore_eos=st.booleans(),
    constraint=st.sampled_from([*[None] * len(CONSTRAINTS), *CONSTRAINTS]),
).map(without_contradiction)
speculative = st.builds(
    SpeculativeConfig,
    fan_out=st.sampled_from(["joint", "uniform", "geometric", "measured"]),
    fallback=st.sampled_from(["neural", "ngram", "none"]),
    copy_from_context=st.booleans(),
)


@st.composite
def ways(draw):
    pattern = random.Random(draw(st.integers(0, 2**32)))
    passes = draw(st.sampled_from([[-1, 0, 1, 2, 9], [0], [-1, 0], [3], [1000]]))
    return Way(
        method=draw(st.sampled_from(["ssd", "ssd", "ssd", "sequential", "ngram"])),
        num_speculative_tokens=draw(st.integers(1, 5)),
        speculative=draw(speculative),
        branch_budget=draw(st.integers(1, 12)),
        progress=lambda: pattern.choice(passes),
        reads=draw(st.sampled_from(["nothing", "states", "features"])),
        fallback_length=draw(st.sampled_from([OneLess, EveryLength])),
    )


@settings(max_examples=150, deadline=None)
@given(
    way=ways(),
    params=st.lists(sampling, min_size=5, max_size=5),
    num_prompts=st.integers(1, 5),
    num_sequences=st.integers(1, 3),
    draft_ids=st.sampled_from([None, (0, 1, 3, 4, 7, 8, 10), (5, 7)]),
    masks_drafts=st.booleans(),
)
def test_output_is_that_of_decoding_without_a_draft(way, params, num_prompts, num_sequences, draft_ids, masks_drafts):
    world = replace(WORLD, num_sequences=num_sequences, draft_ids=draft_ids, masks_drafts=masks_drafts)
    prompts, params = PROMPTS[:num_prompts], params[:num_prompts]
    expected = decode(world, AUTOREGRESSIVE, prompts, params)
    got = decode(world, way, prompts, params)
    assert got.outputs == expected.outputs
    assert [r.logprobs for r in got.requests] == [r.logprobs for r in expected.requests]


@settings(max_examples=60, deadline=None)
@given(way=ways(), temperature=st.sampled_from([0.0, 1.0]), num_sequences=st.integers(1, 3))
def test_a_perfect_draft_is_always_accepted(way, temperature, num_sequences):
    """Draft and target have one law that looks at every token, so any error in the draft's cache costs a rejection."""
    config = replace(way.speculative, copy_from_context=False)  # a copy is another draft, and no perfect one
    if config.fallback == "ngram":
        config = replace(config, fallback="neural")
    way = replace(way, speculative=config, method="sequential" if way.method == "ngram" else way.method)
    world = replace(PERFECT, num_sequences=num_sequences)
    params = SamplingParams(temperature=temperature, max_tokens=20)
    counters = decode(world, way, PROMPTS, params).counters
    assert counters.num_accepted == counters.num_proposed
    if way.method == "sequential" or way.speculative.fallback == "neural":
        assert counters.num_proposed > 0


@pytest.mark.parametrize("fallback", ["neural", "ngram", "none"])
@pytest.mark.parametrize("fan_out", ["uniform", "geometric", "measured"])
def test_hits_and_misses_both_happen(fan_out, fallback):
    """The control of the tests above: what they cover is not all of one kind."""
    config = SpeculativeConfig(fan_out=fan_out, fallback=fallback)
    params = SamplingParams(temperature=0.8, max_tokens=24, ignore_eos=True, seed=4)
    counters = decode(WORLD, Way(method="ssd", speculative=config), PROMPTS, params).counters
    assert 0.2 < counters.num_hits / counters.num_look_ups < 0.98
    assert 0.1 < counters.num_accepted / counters.num_proposed < 0.95


def test_coupled_seed_gives_different_outputs_for_different_seeds():
    params = [SamplingParams(temperature=1.0, seed=seed, max_tokens=12, ignore_eos=True) for seed in (1, 2)]
    outputs = [decode(WORLD, Way(method="ssd"), [PROMPTS[1]], [some]).outputs for some in params]
    assert outputs[0] != outputs[1]
