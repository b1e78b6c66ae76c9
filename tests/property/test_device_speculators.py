"""SD and SSD with a draft on a device emit the very tokens of decoding without a draft, on real (tiny) decoders.

Here the device is the CPU, where what is launched beside the verification has run before it; what can differ is all
that a GPU would share: shapes, padding, noise, look-ups, the draft's own cache.
"""

from dataclasses import replace

import numpy as np
import pytest
from simulated.decoding import EveryLength
from simulated.device_world import (
    CAPACITY,
    CONFIG,
    PARAMS,
    PROMPTS,
    SETS,
    SHAPED,
    TRUNCATED,
    WORLD,
    K,
    all_counts,
    decode,
    decoder,
    head_speculator,
    new_laws,
    new_target,
    proposals,
    refuse,
    refuse_logits,
    speculator,
    state_speculator,
)

from forerun.core.errors import DeviceMemoryError
from forerun.core.rows import Rows
from forerun.engine.core import EngineCore
from forerun.engine.metrics import DecodeCounters
from forerun.engine.scheduler import SchedulerConfig
from forerun.engine.speculative.controller import FixedController
from forerun.engine.speculative.plain import NoSpeculator
from forerun.models.device_runner import DeviceRunner
from forerun.models.torch_runner import TorchRunner


@pytest.fixture(scope="module")
def expected():
    """Decoding without a draft, on the plain path."""
    target = TorchRunner(decoder(), num_sequences=2, capacity=CAPACITY)
    return {name: decode(target, NoSpeculator(), params, num_tokens=0)[0] for name, params in SETS.items()}


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
    target = new_target()
    if params != "shaped":
        refuse_logits(target)
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

    def launch(self, rows, selection=None, *, logit_rows=None):
        if len(set(rows.sequences.tolist())) > self.most_sequences:
            raise DeviceMemoryError("made up")
        return super().launch(rows, selection, logit_rows=logit_rows)


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
    target = new_target()
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
    target = new_target()
    endless = [replace(some, ignore_eos=True) for some in PARAMS]  # an accepted token after the end would not count
    _, counters = decode(target, speculator(method, noise=0.0), endless)
    assert counters.num_accepted == counters.num_proposed > 20


def test_a_draft_of_few_tokens_changes_nothing(expected):
    target = new_target()
    few = np.array([1, 2, 5, 7, 8, 9, 12])
    outputs, _ = decode(target, speculator("neural", noise=0.1, vocab_ids=few), PARAMS)
    assert [tokens for tokens, _, _ in outputs] == [tokens for tokens, _, _ in expected["plain"]]


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
        drafter = speculator(method, noise=0.3, vocab_ids=few, laws=new_laws(target, few))
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
        launch = getattr(target, "launch", None)
        drafter = speculator("neural", noise=0.2, laws=new_laws(target))
        if launch is not None:
            target.launch = launch
        results.append(decode(target, drafter, SHAPED, verification="rejection")[0])
    for (tokens, _, reason), (own, _, own_reason) in zip(*results, strict=True):
        assert (tokens, reason) == (own, own_reason)


def test_drawing_without_a_draft_is_that_of_the_host():
    results = []
    for kind in (DeviceRunner, TorchRunner):
        target = kind(decoder(), num_sequences=2, capacity=CAPACITY)
        if isinstance(target, DeviceRunner):
            refuse_logits(target)
        results.append(decode(target, NoSpeculator(), TRUNCATED, num_tokens=0, verification="rejection")[0])
    assert results[0] == results[1]


@pytest.mark.parametrize("method", ["sequential", "neural"])
def test_rejection_keeps_all_of_a_perfect_draft(method):
    """p is q, so a law of another token, branch or sequence shows as a rejection; requests begin while others run."""
    target = new_target()
    drafter = speculator(method, noise=0.0, laws=new_laws(target))
    warm = [replace(some, ignore_eos=True, temperature=1.2, seed=place) for place, some in enumerate(TRUNCATED)]
    _, counters = decode(target, drafter, warm, verification="rejection")
    assert counters.num_accepted == counters.num_proposed > 15


def test_a_head_on_a_device_drafts_what_the_plain_one_does(expected):
    """Token by token, whether accepted or not; a longer prompt is read before its first round."""
    long = [*range(1, 19), *range(1, 12)]
    drafts = {}
    for method in ("plain", "sequential"):
        target = new_target()
        drafter = head_speculator(method, target)
        drafts[method] = proposals(drafter)
        outputs, _ = decode(target, drafter, [*PARAMS, PARAMS[0]], prompts=[*PROMPTS, long])
        assert [tokens for tokens, _, _ in outputs[:4]] == [tokens for tokens, _, _ in expected["plain"]]
    assert drafts["plain"] == drafts["sequential"]
    assert sum(len(tokens) for round_of_drafts in drafts["plain"] for tokens in round_of_drafts) > 100


def test_a_draft_reads_the_targets_keys_and_values_on_a_device_as_on_the_host(expected):
    """Every draft is the plain one's, whether accepted or not; without those states it drafts other tokens."""
    drafts = {}
    for name, method, lends in (("plain", "plain", True), ("lent", "sequential", True), ("own", "sequential", False)):
        target = new_target()
        drafter = state_speculator(method, target, lends=lends)
        drafts[name] = proposals(drafter)
        outputs, _ = decode(target, drafter, PARAMS)
        assert [tokens for tokens, _, _ in outputs] == [tokens for tokens, _, _ in expected["plain"]]
    assert drafts["lent"] == drafts["plain"]
    assert drafts["own"] != drafts["plain"]


@pytest.mark.parametrize("method", ["checked", "copies"])
def test_preparations_read_the_targets_keys_and_values(method, expected):
    """As if a draft had just taken all of them: what it read ahead of the target is replaced."""
    target = new_target()
    drafter = state_speculator(method, target)
    outputs, counters = decode(target, drafter, PARAMS)
    assert [tokens for tokens, _, _ in outputs] == [tokens for tokens, _, _ in expected["plain"]]
    assert 0 < counters.num_hits < counters.num_look_ups


def test_slots_that_are_lent_are_not_those_being_written():
    """A verification that has begun writes slots of the target; a draft takes only ones before them, beside it."""
    target = new_target()
    drafter = state_speculator("copies", target)
    writing: dict[int, int] = {}
    taken: list[tuple[int, int]] = []
    launch, speculate = target.launch, drafter.speculate

    def launch_and_note(rows, selection=None, **options):
        writing.update((sequence, rows.slots[rows.sequences == sequence].min()) for sequence in rows.sequences.tolist())
        return launch(rows, selection, **options)

    def take(sequence, start, stop):
        if stop > start:
            taken.append((stop, writing.get(sequence, stop)))

    def speculate_and_note(*args):
        writing.clear()  # the host has seen the last results
        return speculate(*args)

    target.launch, drafter.speculate = launch_and_note, speculate_and_note
    for draft in drafter._draft._drafts:
        chain_of, borrow = draft._chain, draft.runner.borrow_states

        def chain_and_note(request, *args, chain_of=chain_of):
            chain = chain_of(request, *args)
            take(chain.sequence, *chain.lent)
            return chain

        def borrow_and_note(sequence, start, stop, *, lender, borrow=borrow):
            take(sequence, start, stop)
            borrow(sequence, start, stop, lender=lender)

        draft._chain, draft.runner.borrow_states = chain_and_note, borrow_and_note
    decode(target, drafter, PARAMS)
    assert sum(stop == first for stop, first in taken) > 10
    assert all(stop <= first for stop, first in taken)


@pytest.mark.parametrize("kind", ["draft", "copies", "head", "states"])
def test_drafts_after_a_miss_may_have_any_length_or_none(kind, expected):
    """Beside drafts that were prepared; what was drafted without a wait counts as none."""
    target = new_target()
    drafter = {
        "draft": lambda: speculator("neural", noise=0.3),
        "copies": lambda: speculator("neural", noise=0.3, num_copies=2),
        "head": lambda: head_speculator("neural", target),
        "states": lambda: state_speculator("copies", target),
    }[kind]()
    learned: list[tuple[int, int]] = []
    lengths = drafter._fallback_length = EveryLength()
    lengths.learn_outcome = lambda num_accepted, *, fallback: learned.append((num_accepted, fallback))
    drafts = proposals(drafter)
    outputs, counters = decode(target, drafter, PARAMS)
    assert [tokens for tokens, _, _ in outputs] == [tokens for tokens, _, _ in expected["plain"]]
    assert {len(tokens) for round_drafts in drafts for tokens in round_drafts} == {0, 1, 2, 3}
    assert {fallback for _, fallback in learned} == {0, 1, 2, 3}
    assert all(num_accepted <= fallback for num_accepted, fallback in learned if fallback)
    assert 0 < counters.num_hits < counters.num_look_ups


@pytest.mark.parametrize("kind", ["extend", "prepare"])
def test_a_draft_that_is_short_of_memory_is_answered_by_fewer_at_a_time(kind):
    """Before the verification or beside it: tokens and later drafts are those that there would have been."""
    target = new_target()
    drafter = state_speculator("checked", target)
    config = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=64)
    core = EngineCore(
        target, verification="coupled", counters=DecodeCounters(), scheduler=config, layer_ids=range(CONFIG.num_layers)
    )
    requests = WORLD.requests(PROMPTS[:2], [replace(PARAMS[0], max_tokens=24)] * 2)
    graphs = drafter._draft.runner.graphs
    launch, failed = graphs.launch, []

    def launch_or_fail(key, function, inputs):
        is_later = len(core.running) == 2 and all(len(request.output_ids) > 4 for request in requests)
        if is_later and key[0] == kind and not failed:
            failed.append(key)
            raise DeviceMemoryError("made up")
        return launch(key, function, inputs)

    graphs.launch = launch_or_fail
    for _ in core.run(requests, drafter, FixedController(K)):
        pass
    assert failed
    assert core.num_preempted == 2
    alone = [
        decode(new_target(), NoSpeculator(), [request.params], prompts=[request.prompt_ids]) for request in requests
    ]
    assert [request.output_ids for request in requests] == [outputs[0][0] for outputs, _ in alone]


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
    target = new_target()
    outputs, counters = decode(target, head_speculator(fallback, target), PARAMS)
    assert [tokens for tokens, _, _ in outputs] == [tokens for tokens, _, _ in expected["plain"]]
    assert 0 < counters.num_hits < counters.num_look_ups


def test_rejection_of_a_heads_drafts(expected):
    target = new_target()
    outputs, counters = decode(
        target, head_speculator("neural", target, verification="rejection"), PARAMS, verification="rejection"
    )
    assert outputs[0][0] == expected["plain"][0][0]  # greedy, so the same by any rule
    assert 0 < counters.num_accepted < counters.num_proposed


@pytest.mark.parametrize("num_copies", [2, 3, 4])
@pytest.mark.parametrize("verification", ["coupled", "rejection"])
def test_copies_of_a_draft_decode_as_one_that_prepares_for_as_many_outcomes(num_copies, verification):
    """Every token, hit and rejection, 6 outcomes over 4 copies too; one that prepares only its part hits less."""

    def results(**copies):
        target = new_target()
        if verification == "rejection":
            drafter = speculator("neural", noise=0.3, laws=new_laws(target), **copies)
        else:
            drafter = speculator("neural", noise=0.3, **copies)
        outputs, counters = decode(target, drafter, PARAMS, verification=verification)
        return [tokens for tokens, _, _ in outputs], all_counts(counters)

    whole = results()
    assert results(num_copies=num_copies) == whole
    (num_hits, num_look_ups, *_) = whole[1]
    (part_hits, part_look_ups, *_) = results(num_outcomes=6 // num_copies)[1]
    assert 0 < part_hits / part_look_ups < num_hits / num_look_ups


def test_chains_are_drafted_where_their_sequence_is_at_home():
    """Each copy extends some of the sequences, by the tokens and laws of a draft that extends all."""
    results, homes = [], [set(), set()]
    for num_copies in (1, 2):
        target = new_target()
        drafter = speculator("sequential", noise=0.3, laws=new_laws(target), num_copies=num_copies)
        if num_copies == 2:
            for draft, sequences in zip(drafter._draft._drafts, homes, strict=True):

                def extend(chains, *, num_tokens, own=draft._rounds.extend, sequences=sequences):
                    sequences.update(chain.sequence for chain in chains)
                    return own(chains, num_tokens=num_tokens)

                draft._rounds.extend = extend
        outputs, counters = decode(target, drafter, PARAMS, verification="rejection")
        results.append((outputs, all_counts(counters)))
    assert results[0] == results[1]
    assert homes == [{0}, {1}]


@pytest.mark.parametrize("verification", ["coupled", "rejection"])
def test_copies_of_a_head_each_read_the_targets_states(verification):
    results = []
    for num_copies in (1, 2):
        target = new_target()
        drafter = head_speculator("neural", target, verification=verification, num_copies=num_copies)
        outputs, counters = decode(target, drafter, PARAMS, verification=verification)
        results.append((outputs, all_counts(counters)))
    assert results[0] == results[1]
    assert results[0][1][0] > 0
