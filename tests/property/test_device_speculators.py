"""SD and SSD with a draft on a device emit the very tokens of decoding without a draft, on real (tiny) decoders.

Here the device is the CPU, where what is launched beside the verification has run before it; what can differ is all
that a GPU would share: shapes, padding, noise, look-ups, the draft's own cache.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated.decoding import World
from simulated.heads import random_head_weights
from simulated.models import markov_law

from forerun.core.errors import DeviceMemoryError
from forerun.core.rows import Rows
from forerun.engine.config import SpeculativeConfig, Verification
from forerun.engine.core import EngineCore
from forerun.engine.metrics import DecodeCounters
from forerun.engine.sampling import SamplingParams
from forerun.engine.scheduler import SchedulerConfig
from forerun.engine.speculative.choice import DraftChoice
from forerun.engine.speculative.controller import FixedController
from forerun.engine.speculative.device_drafter import (
    DeviceDraft,
    DeviceSequentialSpeculator,
    DeviceSsdSpeculator,
)
from forerun.engine.speculative.plain import NoSpeculator
from forerun.engine.speculative.sequential import SequentialSpeculator
from forerun.engine.speculative.target_states import TargetStates
from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.decoder_weights import fill_decoder
from forerun.models.device_head import DeviceHead
from forerun.models.device_runner import DeviceRunner
from forerun.models.draft_laws import DraftLaws
from forerun.models.eagle3 import Eagle3Config
from forerun.models.eagle3_runner import Eagle3Runner, fill_head
from forerun.models.layout import parameter_shapes
from forerun.models.torch_runner import TorchRunner

CONFIG = DecoderConfig(
    vocab_size=19, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
    max_len=64,
)  # fmt: skip
CAPACITY, K = 56, 3
WORLD = World(
    target=markov_law(CONFIG.vocab_size, seed=0),
    draft=markov_law(CONFIG.vocab_size, seed=0),
    vocab_size=CONFIG.vocab_size,
    eos_ids=(0,),
    capacity=CAPACITY,
)
PROMPTS = ([3, 1, 4, 1, 5, 9], [2, 7], [1, 8, 2, 8, 1, 8, 2, 8, 4, 5], [9, 9, 9])
PARAMS = [
    SamplingParams(temperature=0, max_tokens=16, ignore_eos=True),
    SamplingParams(temperature=0.9, max_tokens=11, seed=5),
    SamplingParams(temperature=0.7, max_tokens=18, seed=6, ignore_eos=True),
    SamplingParams(temperature=1.2, max_tokens=9, seed=7),
]
TRUNCATED = [
    SamplingParams(temperature=1.1, top_k=6, max_tokens=14, seed=1, ignore_eos=True),
    SamplingParams(temperature=0.9, top_p=0.7, min_p=0.01, max_tokens=12, seed=2),
    SamplingParams(temperature=0, max_tokens=10, top_k=3),
    SamplingParams(temperature=1.3, min_p=0.1, top_k=9, max_tokens=12, seed=4),
]
SHAPED = [*PARAMS[:3], SamplingParams(temperature=1.0, top_p=0.9, logprobs=1, max_tokens=8, seed=3)]
SETS = {"plain": PARAMS, "shaped": SHAPED, "truncated": TRUNCATED}


def decoder(*, noise: float = 0.0) -> Decoder:
    """The same weights, or some near them."""
    rng, other = np.random.default_rng(8), np.random.default_rng(9)
    weights = {
        name: ((rng.standard_normal(shape) + noise * other.standard_normal(shape)) * (1.5 / shape[-1] ** 0.5)).astype(
            np.float32
        )
        for name, shape in parameter_shapes(CONFIG).items()
    }
    return fill_decoder(CONFIG, weights.__getitem__)


def decode(target, speculator, params, *, num_tokens=K, verification: Verification = "coupled", prompts=PROMPTS):
    """Return outputs and counters of all prompts, two side by side."""
    requests = WORLD.requests(prompts, [replace(some, seed=some.seed or 0) for some in params])
    counters = DecodeCounters()
    core = EngineCore(target, verification=verification, counters=counters)
    for _ in core.run(requests, speculator, FixedController(num_tokens)):
        pass
    return [(request.output_ids, request.logprobs, request.finish_reason) for request in requests], counters


def speculator(method: str, *, noise: float, vocab_ids=None, most_drawn: int = 0):
    """Drafts by shared noise, or drawn from laws that are then held on the draft's device."""
    runner = DeviceRunner(
        decoder(noise=noise), num_sequences=2, capacity=CAPACITY, num_tree_slots=6 * K, vocab_ids=vocab_ids
    )
    laws = None
    if most_drawn:
        laws = DraftLaws(
            num_sequences=2, num_places=most_drawn, vocab_ids=vocab_ids, vocab_size=CONFIG.vocab_size,
            recorder=runner.recorder,
        )  # fmt: skip
    draft = DeviceDraft(runner, laws=laws)
    if method == "sequential":
        return DeviceSequentialSpeculator(draft)
    return DeviceSsdSpeculator(draft, num_outcomes=6, depth=2, fallback=method)


@pytest.fixture(scope="module")
def expected():
    """Decoding without a draft, on the plain path."""
    target = TorchRunner(decoder(), num_sequences=2, capacity=CAPACITY)
    return {name: decode(target, NoSpeculator(), params, num_tokens=0)[0] for name, params in SETS.items()}


def refuse(*_args, **_options):
    raise AssertionError("logits were asked for where tokens are enough")


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("sequential", "plain"),
        ("neural", "plain"),
        ("ngram", "plain"),
        ("none", "plain"),
        ("neural", "shaped"),
        ("neural", "truncated"),
        ("sequential", "truncated"),
    ],
)
def test_output_is_that_of_decoding_without_a_draft(method, params, expected):
    """By tokens chosen where the logits are, and where a request needs more, by logits on the host."""
    target = DeviceRunner(decoder(), num_sequences=2, capacity=CAPACITY)
    if params != "shaped":
        target.forward = refuse
    outputs, counters = decode(target, speculator(method, noise=0.3), SETS[params])
    for (tokens, logprobs, reason), (own, own_logprobs, own_reason) in zip(outputs, expected[params], strict=True):
        assert (tokens, reason) == (own, own_reason)
        assert len(logprobs) == len(own_logprobs)
        for one, other in zip(logprobs, own_logprobs, strict=True):
            assert one.logprob_nats == pytest.approx(other.logprob_nats, abs=1e-4)
    assert 0 < counters.num_accepted < counters.num_proposed
    if method != "sequential":
        assert 0 < counters.num_hits < counters.num_look_ups


class ShortOfMemory(DeviceRunner):
    """A target whose device has no memory for passes over more than so many sequences, prompts included."""

    most_sequences = 1

    def _run(self, rows, selection, logit_rows):
        if len(set(rows.sequences.tolist())) > self.most_sequences:
            raise DeviceMemoryError("made up")
        return super()._run(rows, selection, logit_rows)


@pytest.mark.parametrize("reuses_prefixes", [False, True])
def test_out_of_memory_is_answered_by_fewer_at_a_time(reuses_prefixes, expected):
    """In the pass over the prompts, then in a round; the tokens are those that there would have been."""
    target = ShortOfMemory(decoder(), num_sequences=2, capacity=CAPACITY)
    config = SchedulerConfig(
        max_num_seqs=2, max_num_batched_tokens=64, prefers_prefill=True, reuses_prefixes=reuses_prefixes
    )
    for most_at_first in (1, 2):
        target.most_sequences = most_at_first
        requests = WORLD.requests(PROMPTS, PARAMS)
        counters = DecodeCounters()
        core = EngineCore(
            target, verification="coupled", counters=counters, scheduler=config, layer_ids=range(CONFIG.num_layers)
        )
        for _ in core.run(requests, speculator("neural", noise=0.3), FixedController(K)):
            if counters.num_rounds > 1:
                target.most_sequences = 1
        assert [request.output_ids for request in requests] == [tokens for tokens, _, _ in expected["plain"]]
        assert core.num_preempted >= 2
        core.check_integrity()
    target.most_sequences = 0
    with pytest.raises(DeviceMemoryError):
        decode(target, speculator("neural", noise=0.3), PARAMS)


def test_a_common_beginning_is_copied_where_it_lies():
    target = DeviceRunner(decoder(), num_sequences=2, capacity=CAPACITY)
    target.read_states = refuse
    common = list(range(1, 19)) * 2
    requests = WORLD.requests([[*common, 3], [*common, 4, 5]], [PARAMS[0]] * 2)
    config = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=64, reuses_prefixes=True)
    counters = DecodeCounters()
    core = EngineCore(
        target, verification="coupled", counters=counters, scheduler=config, layer_ids=range(CONFIG.num_layers)
    )
    for _ in core.run(requests, NoSpeculator(), FixedController(0)):
        pass
    assert counters.num_prefilled == 37 + 38 - 32  # two blocks of 16 tokens
    plain = TorchRunner(decoder(), num_sequences=1, capacity=CAPACITY)
    for request in requests:
        logits = plain.forward(Rows.chains([(0, 0, [*request.prompt_ids, *request.output_ids[:-1]])]))
        assert request.output_ids == logits[len(request.prompt_ids) - 1 :].argmax(axis=1).tolist()


@pytest.mark.parametrize("method", ["sequential", "neural"])
def test_a_perfect_draft_is_always_accepted(method):
    """Draft and target are one model, so any error in the draft's cache, keys or positions costs a rejection."""
    target = DeviceRunner(decoder(), num_sequences=2, capacity=CAPACITY)
    endless = [replace(some, ignore_eos=True) for some in PARAMS]  # an accepted token after the end would not count
    _, counters = decode(target, speculator(method, noise=0.0), endless)
    assert counters.num_accepted == counters.num_proposed > 20


def test_a_draft_of_few_tokens_changes_nothing(expected):
    target = DeviceRunner(decoder(), num_sequences=2, capacity=CAPACITY)
    few = np.array([1, 2, 5, 7, 8, 9, 12])
    outputs, _ = decode(target, speculator("neural", noise=0.1, vocab_ids=few), PARAMS)
    assert [tokens for tokens, _, _ in outputs] == [tokens for tokens, _, _ in expected["plain"]]


def verifying(method: str, target, *, noise: float, vocab_ids=None):
    """A target that verifies by rejection, and the speculator whose laws it reads: beside it, or on the host."""
    drafter = speculator(method, noise=noise, vocab_ids=vocab_ids, most_drawn=K)
    if isinstance(target, DeviceRunner):
        target.verify_by(drafter._draft._laws)
        target.forward = refuse
    return drafter


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("sequential", "plain"),
        ("neural", "plain"),
        ("neural", "truncated"),
        ("ngram", "plain"),
        ("none", "truncated"),
    ],
)
def test_rejection_where_the_logits_are_is_that_of_the_host(method, params, expected):
    """The same tokens, accepted and replaced alike, as with logits and laws on the host."""
    few = np.array([1, 2, 5, 7, 8, 9, 12, 14, 15, 18]) if params == "truncated" else None
    results = []
    for kind in (DeviceRunner, TorchRunner):
        target = kind(decoder(), num_sequences=2, capacity=CAPACITY)
        drafter = verifying(method, target, noise=0.3, vocab_ids=few)
        results.append(decode(target, drafter, SETS[params], verification="rejection"))
    (outputs, counters), (expected_outputs, expected_counters) = results
    assert outputs == expected_outputs
    assert counters.accepted_counts == expected_counters.accepted_counts
    assert 0 < counters.num_accepted < counters.num_proposed
    for place, params_of_it in enumerate(SETS[params]):
        if params_of_it.is_greedy:
            assert outputs[place][0] == expected[params][place][0]


def test_rejection_of_requests_that_need_logits_reads_the_laws_on_the_host():
    results = []
    for kind in (DeviceRunner, TorchRunner):
        target = kind(decoder(), num_sequences=2, capacity=CAPACITY)
        drafter = speculator("neural", noise=0.2, most_drawn=K)
        if isinstance(target, DeviceRunner):
            target.verify_by(drafter._draft._laws)
        results.append(decode(target, drafter, SHAPED, verification="rejection")[0])
    for (tokens, _, reason), (own, _, own_reason) in zip(*results, strict=True):
        assert (tokens, reason) == (own, own_reason)


def test_drawing_without_a_draft_is_that_of_the_host():
    results = []
    for kind in (DeviceRunner, TorchRunner):
        target = kind(decoder(), num_sequences=2, capacity=CAPACITY)
        if isinstance(target, DeviceRunner):
            target.forward = refuse
        results.append(decode(target, NoSpeculator(), TRUNCATED, num_tokens=0, verification="rejection")[0])
    assert results[0] == results[1]


@pytest.mark.parametrize("method", ["sequential", "neural"])
def test_rejection_keeps_all_of_a_perfect_draft(method):
    """p is q, so a law of another token, branch or sequence shows as a rejection; requests begin while others run."""
    target = DeviceRunner(decoder(), num_sequences=2, capacity=CAPACITY)
    drafter = verifying(method, target, noise=0.0)
    warm = [replace(some, ignore_eos=True, temperature=1.2, seed=place) for place, some in enumerate(TRUNCATED)]
    _, counters = decode(target, drafter, warm, verification="rejection")
    assert counters.num_accepted == counters.num_proposed > 15


def head_speculator(method: str, target, *, verification: Verification = "coupled"):
    """A head with random weights, which reads the hidden states of a target."""
    config = Eagle3Config(
        layer=replace(CONFIG, num_layers=1),
        layer_ids=(0, 1),
        target_hidden_size=CONFIG.hidden_size,
        draft_vocab_size=CONFIG.vocab_size,
    )
    head = fill_head(config, random_head_weights(config).__getitem__, dtype=torch.float32)
    if method == "plain":
        speculative = SpeculativeConfig(copy_from_context=False, verification=verification)
        return SequentialSpeculator(
            Eagle3Runner(head, num_sequences=2, capacity=CAPACITY),
            lambda request: DraftChoice(
                request.params, speculative, request.prompt_ids, frozenset((0,)), vocab_size=CONFIG.vocab_size,
                vocab_ids=None, request_number=request.number,
            ),
            states=TargetStates.features(target, layer_ids=config.layer_ids),
        )  # fmt: skip
    target.keep_features(config.layer_ids)

    def runner() -> DeviceHead:
        return DeviceHead(head, num_sequences=2, capacity=CAPACITY, num_tree_slots=6 * K)

    laws = None
    if verification == "rejection":
        laws = DraftLaws(
            num_sequences=2, num_places=K, vocab_ids=None, vocab_size=CONFIG.vocab_size, recorder=target.recorder
        )
        target.verify_by(laws)
        target.forward = refuse
    if method == "checked":
        draft = CheckedDraft(runner(), lender=target)
        draft.fresh = lambda: DeviceDraft(runner(), lender=target)
        return DeviceSsdSpeculator(draft, num_outcomes=6, depth=2, fallback="neural")
    draft = DeviceDraft(runner(), laws=laws, lender=target)
    if method == "sequential":
        return DeviceSequentialSpeculator(draft)
    return DeviceSsdSpeculator(draft, num_outcomes=6, depth=2, fallback=method)


def test_a_head_on_a_device_drafts_what_the_plain_one_does(expected):
    """Token by token, whether accepted or not; a longer prompt is read before its first round."""
    long = [*range(1, 19), *range(1, 12)]
    drafts: dict[str, list[list[tuple[int, ...]]]] = {"plain": [], "sequential": []}
    for method, proposed in drafts.items():
        target = DeviceRunner(decoder(), num_sequences=2, capacity=CAPACITY)
        drafter = head_speculator(method, target)

        def speculate(requests, limits, drafter=drafter, own=drafter.speculate, proposed=proposed):
            speculations = own(requests, limits)
            proposed.append([speculation.token_ids for speculation in speculations])
            return speculations

        drafter.speculate = speculate
        outputs, _ = decode(target, drafter, [*PARAMS, PARAMS[0]], prompts=[*PROMPTS, long])
        assert [tokens for tokens, _, _ in outputs[:4]] == [tokens for tokens, _, _ in expected["plain"]]
    assert drafts["plain"] == drafts["sequential"]
    assert sum(len(tokens) for round_of_drafts in drafts["plain"] for tokens in round_of_drafts) > 100


class CheckedDraft(DeviceDraft):
    """A draft whose preparations are those of one that has read nothing before."""

    fresh: Callable[[], DeviceDraft]

    def prepare(self, requests, speculations, **options):
        pending = super().prepare(requests, speculations, **options)
        other = self.fresh()
        for request in requests:
            other.start(request)
        again = other.prepare(requests, speculations, **options).result()
        for request in requests:
            np.testing.assert_array_equal(pending.result()[request.sequence], again[request.sequence])
        return pending


def test_rejection_of_drafts_whose_laws_are_on_the_host_needs_logits():
    results = []
    for kind in (DeviceRunner, TorchRunner):
        target = kind(decoder(), num_sequences=2, capacity=CAPACITY)
        drafter = head_speculator("plain", target, verification="rejection")
        results.append(decode(target, drafter, PARAMS, verification="rejection"))
    assert results[0][0] == results[1][0]
    assert results[0][1].accepted_counts == results[1][1].accepted_counts


@pytest.mark.parametrize("verification", ["coupled", "rejection"])
def test_broken_weights_are_told_as_such(verification):
    broken = decoder()
    broken.norm.weight.data.fill_(float("nan"))
    target = DeviceRunner(broken, num_sequences=2, capacity=CAPACITY)
    with pytest.raises(FloatingPointError, match="the model's numbers are broken"):
        decode(target, NoSpeculator(), PARAMS, num_tokens=0, verification=verification)


@pytest.mark.parametrize("fallback", ["checked", "none"])
def test_a_head_prepares_for_outcomes_on_a_device(fallback, expected):
    target = DeviceRunner(decoder(), num_sequences=2, capacity=CAPACITY)
    outputs, counters = decode(target, head_speculator(fallback, target), PARAMS)
    assert [tokens for tokens, _, _ in outputs] == [tokens for tokens, _, _ in expected["plain"]]
    assert 0 < counters.num_hits < counters.num_look_ups


def test_rejection_of_a_heads_drafts(expected):
    target = DeviceRunner(decoder(), num_sequences=2, capacity=CAPACITY)
    outputs, counters = decode(
        target, head_speculator("neural", target, verification="rejection"), PARAMS, verification="rejection"
    )
    assert outputs[0][0] == expected["plain"][0][0]  # greedy, so the same by any rule
    assert 0 < counters.num_accepted < counters.num_proposed
