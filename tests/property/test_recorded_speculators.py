"""SD and SSD with the recorder for GPUs: every pass a graph, target and drafts each in a stream of their own.

On a GPU where there is one; and everywhere on a stand-in for ``torch.cuda``, which replays what was captured and raises
where streams, or the host, use one memory in no order.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from simulated.cuda import FakeCuda, RaceError, fake_cuda
from simulated.device_world import (
    EAGER,
    PARAMS,
    TRUNCATED,
    Place,
    all_counts,
    decode,
    head_speculator,
    new_laws,
    new_target,
    speculator,
    state_speculator,
)

from forerun.core.rows import Rows
from forerun.models.cuda_recorder import CudaGraphRecorder
from forerun.models.graph_pool import GraphPool

CPU = torch.device("cpu")
Drafter = Callable[[Any, Place], Any]


@pytest.fixture
def fake(monkeypatch) -> Iterator[FakeCuda]:
    """The stand-in, looking out for races."""
    fake = fake_cuda(monkeypatch)
    with fake:
        yield fake
    assert fake.num_operations > 0


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request) -> Place:
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        return Place(torch.device("cuda", 0), lambda: CudaGraphRecorder(torch.device("cuda", 0)))
    return Place(CPU, lambda: CudaGraphRecorder(CPU), request.getfixturevalue("fake").share)


CAPTURED = Place(CPU, lambda: CudaGraphRecorder(CPU))
DRAFTERS: dict[str, Drafter] = {
    "sequential": lambda _target, place: speculator("sequential", noise=0.3, place=place),
    "neural": lambda _target, place: speculator("neural", noise=0.3, place=place),
    "ngram": lambda _target, place: speculator("ngram", noise=0.3, place=place),
    "two copies": lambda _target, place: speculator("neural", noise=0.3, num_copies=2, place=place),
    "head, sequential": lambda target, place: head_speculator("sequential", target, place=place),
    "head, neural": lambda target, place: head_speculator("neural", target, place=place),
    "lent states, sequential": lambda target, place: state_speculator("sequential", target, place=place),
    "lent states, two copies": lambda target, place: state_speculator("copies", target, place=place),
}
REJECTING: dict[str, Drafter] = {
    "sequential": lambda target, place: speculator("sequential", noise=0.3, laws=new_laws(target), place=place),
    "neural": lambda target, place: speculator("neural", noise=0.3, laws=new_laws(target), place=place),
    "two copies": lambda target, place: speculator(
        "neural", noise=0.3, laws=new_laws(target), num_copies=2, place=place
    ),
    "head": lambda target, place: head_speculator("neural", target, verification="rejection", place=place),
}


def outcome(place: Place, new_drafter: Drafter, params, *, lends: bool = False, verification="coupled"):
    """Tokens of all requests, and what was counted."""
    target = new_target(place)
    drafter = new_drafter(target, place)
    if lends:
        # A draft reads what the target has computed of a text, which stays, while that goes on.
        place.share(target.cache.keys[0], target.features(0, 0, 1))
    outputs, counters = decode(target, drafter, params, verification=verification)
    return [tokens for tokens, _, _ in outputs], all_counts(counters)


@pytest.mark.parametrize("name", DRAFTERS)
def test_drafts_and_tokens_are_those_of_passes_run_as_they_are(place, name):
    params, lends = TRUNCATED if name == "two copies" else PARAMS, name.startswith(("head", "lent"))
    found = outcome(place, DRAFTERS[name], params, lends=lends)
    assert found == outcome(EAGER, DRAFTERS[name], params)


@pytest.mark.parametrize("name", REJECTING)
def test_rejection_is_that_of_passes_run_as_they_are(place, name):
    found = outcome(place, REJECTING[name], PARAMS, lends=name == "head", verification="rejection")
    assert found == outcome(EAGER, REJECTING[name], PARAMS, verification="rejection")


def test_what_is_filled_in_the_usual_stream_is_waited_for(fake, monkeypatch):
    monkeypatch.setattr(CudaGraphRecorder, "catch_up", lambda _self: None)
    with pytest.raises(RaceError, match="in the usual stream meanwhile"):
        outcome(CAPTURED, DRAFTERS["neural"], PARAMS)


def test_a_draft_waits_for_the_copy_of_its_laws(fake, monkeypatch):
    monkeypatch.setattr(CudaGraphRecorder, "wait_for", lambda _self, _other: None)
    with pytest.raises(RaceError, match="in stream 2 writes what is read in stream 1 meanwhile"):
        outcome(CAPTURED, REJECTING["neural"], PARAMS, verification="rejection")


@pytest.mark.parametrize("waits", [True, False])
def test_states_are_lent_after_what_the_target_was_asked_for(fake, monkeypatch, waits):
    """A common beginning may be copied to a text's row, and the draft take it, before the host has waited for it."""
    if not waits:
        monkeypatch.setattr(CudaGraphRecorder, "wait_for", lambda _self, _other: None)
    target = new_target(CAPTURED)
    drafter = state_speculator("sequential", target, place=CAPTURED)
    (runner,) = drafter._draft.runners
    target.read(Rows.chains([(0, 0, [3, 1, 4, 1])]))
    target.copy_slots(0, 1, 0, 4)
    drafter._draft.begin_round()
    if waits:
        runner.borrow_states(1, 0, 4, lender=drafter._draft._lender)
        expected = target.read_states(0, 0, 4, layer_ids=[1])
        np.testing.assert_array_equal(runner.read_states(1, 0, 4, layer_ids=[0]), expected)
        return
    with pytest.raises(RaceError, match="copy_ in stream 2 reads what is written in stream 1 meanwhile"):
        runner.borrow_states(1, 0, 4, lender=drafter._draft._lender)


@pytest.mark.parametrize("waits", [False, True])
def test_a_draft_prepares_beside_the_verification(fake, waits):
    """Its passes come after those of the target before, and don't wait for the one that they are to run beside."""
    target = new_target(CAPTURED)
    fake.share(target.cache.keys[0])
    drafter = state_speculator("copies", target, place=CAPTURED)
    verifying, preparing = (
        [runner.recorder._stream for runner in runners] for runners in ((target,), drafter._draft.runners)
    )
    own, is_beside = drafter.prepare, []

    def prepare():
        if waits:
            drafter._draft.begin_round()
        has_work = bool(drafter._begun)
        own()
        if has_work:
            (stream,) = verifying
            is_beside.append(all(draft.clock.get(stream, 0) < stream.clock[stream] for draft in preparing))

    drafter.prepare = prepare
    decode(target, drafter, PARAMS)
    assert len(is_beside) > 10
    assert not any(is_beside) if waits else all(is_beside)


def test_results_are_waited_for(fake, monkeypatch):
    monkeypatch.setattr(type(torch.cuda.Event()), "synchronize", lambda _self: None)
    with pytest.raises(RaceError, match=r"numpy\(\) by the host while stream 1 may still be at it"):
        outcome(CAPTURED, DRAFTERS["sequential"], PARAMS)


def plus_one(words: torch.Tensor) -> torch.Tensor:
    return words + 1


def test_a_graph_is_launched_again_when_its_last_inputs_have_been_read(fake):
    recorder = CudaGraphRecorder(CPU)
    replay = recorder.record(plus_one, np.zeros(2, np.int64))
    first, second = (replay.launch(np.full(2, number)) for number in (3, 5))
    assert (first.result().tolist(), second.result().tolist()) == ([4, 4], [6, 6])
    replay.launch(np.full(2, 7))
    replay._last = None
    with pytest.raises(RaceError, match="copy_ by the host"):
        replay.launch(np.full(2, 9))


def test_a_capture_asks_nothing_of_the_host(fake):
    with pytest.raises(RuntimeError, match="not permitted while a stream is capturing"):
        CudaGraphRecorder(CPU).record(lambda words: words * int(words.sum()), np.ones(2, np.int64))


def test_memory_of_graphs_has_a_new_name_when_all_of_them_have_gone(fake):
    recorder = CudaGraphRecorder(CPU)
    pool = GraphPool(recorder)
    assert pool.launch("one", plus_one, np.array([1])).result().tolist() == [2]
    pool.launch("two", lambda words: words - 1, np.array([1]))
    assert len(fake.pools) == 1
    pool.clear()
    assert pool.launch("one", plus_one, np.array([4])).result().tolist() == [5]
    assert len(fake.pools) == 2


def test_busy_times_are_those_of_replays_since_the_last_question(fake):
    recorder = CudaGraphRecorder(CPU)
    replay = recorder.record(plus_one, np.zeros(2, np.int64))
    replay.launch(np.zeros(2, np.int64))
    assert recorder.take_busy_s() == 0  # measured from the first question on
    for _ in range(3):
        replay.launch(np.zeros(2, np.int64))
    assert recorder.take_busy_s() == pytest.approx(3 * 0.25e-3)
    assert recorder.run(plus_one, np.ones(3, np.int64)).result().tolist() == [2, 2, 2]
    assert recorder.take_busy_s() == 0
    recorder.finish()
