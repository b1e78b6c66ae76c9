"""What every ``Speculator`` promises to the engine core, whatever it drafts with."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.decoding import Way, World
from simulated.models import history_law, markov_law, mixture_law

from forerun.core.rows import Rows
from forerun.engine.config import SpeculativeConfig
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.speculator import Speculation

VOCAB_SIZE = 8
LAW = mixture_law((0.5, history_law(VOCAB_SIZE, seed=1)), (1.0, markov_law(VOCAB_SIZE, seed=2, spread=2.0)))
WORLD = World(target=LAW, draft=LAW, vocab_size=VOCAB_SIZE, num_sequences=2, capacity=40)
REJECTION = SpeculativeConfig(verification="rejection")
WAYS = {
    "none": Way(method="none", speculative=REJECTION),
    "n-gram": Way(method="ngram", speculative=REJECTION),
    "sequential": Way(method="sequential", speculative=REJECTION),
    "ssd": Way(method="ssd", speculative=REJECTION),
    "ssd, drafter far behind": Way(method="ssd", speculative=REJECTION, branch_budget=2, progress=lambda: 0),
    "ssd, n-gram fallback": Way(method="ssd", branch_budget=2, speculative=replace(REJECTION, fallback="ngram")),
    "ssd, no fallback": Way(method="ssd", branch_budget=2, speculative=replace(REJECTION, fallback="none")),
    "ssd, drafter dead at once": Way(method="ssd", speculative=REJECTION, dies_after=0),
    "ssd, drafter dies": Way(method="ssd", speculative=REJECTION, dies_after=5),
    "sequential, hidden states": Way(method="sequential", speculative=REJECTION, reads="features"),
    "ssd, hidden states": Way(method="ssd", speculative=REJECTION, reads="features"),
}
PROMPTS = ((1, 2, 3), (4, 4))
SAMPLED = SamplingParams(temperature=1.0, seed=5, max_tokens=30)
pytestmark = pytest.mark.filterwarnings("ignore:the simulated drafter is dead")


class Host:
    """Plays the engine core by hand: a verification accepts as many tokens as it is told."""

    def __init__(self, way, params=SAMPLED, prompts=PROMPTS, *, used=None):
        self.reads = way.reads
        self.target = used.target if used else WORLD.target_model()
        self.speculator = used.speculator if used else way.speculator(WORLD, self.target)
        self.requests = WORLD.requests(prompts, [params] * len(prompts))
        for request in self.requests:
            request.sequence = request.index
            self.speculator.start(request)
            self._emit(request, [5])

    def round(self, limits, accept):
        """Return the drafts of a round; ``accept[i]`` of request i's tokens are accepted, as far as there are."""
        for request in self.requests if self.reads != "nothing" else ():
            self.target.forward(Rows.chains([(request.sequence, 0, request.computed_tokens())]))
        drafts = self.speculator.speculate(self.requests, limits)
        for request, draft, limit, most in zip(self.requests, drafts, limits, accept, strict=True):
            assert len(draft.token_ids) <= limit
            assert all(type(token) is int and 0 <= token < VOCAB_SIZE for token in draft.token_ids)
            if not request.params.is_greedy:
                laws = self.speculator.laws(request, draft)
                assert len(laws) == len(draft.token_ids)
                for token, law in zip(draft.token_ids, laws, strict=True):
                    assert law is None or law.prob(token) > 0
            num_accepted = min(most, len(draft.token_ids))
            self._emit(request, [*draft.token_ids[:num_accepted], 6])
            self.speculator.observe(request, num_accepted)
        return drafts

    def finish(self):
        for request in self.requests:
            self.speculator.finish(request)

    @staticmethod
    def _emit(request, tokens):
        request.append(tokens, ["target"] * len(tokens), [])
        request.round_number += 1


@pytest.fixture(params=WAYS)
def way(request) -> Way:
    return WAYS[request.param]


@settings(max_examples=25, deadline=None)
@given(st.data())
@pytest.mark.parametrize("params", [SAMPLED, replace(SAMPLED, temperature=0)], ids=["sampled", "greedy"])
@pytest.mark.parametrize("name", WAYS)
def test_limits_and_laws_hold_in_any_course(name, params, data):
    host = Host(WAYS[name], params)
    numbers = st.lists(st.integers(0, 3), min_size=2, max_size=2)
    for _ in range(data.draw(st.integers(0, 6))):
        host.round(data.draw(numbers), data.draw(numbers))
    host.finish()


def test_a_limit_of_zero_gives_an_empty_draft_and_goes_on_after_it(way):
    host = Host(way)
    for limits in ([0, 2], [0, 0], [2, 0], [0, 0], [2, 2]):
        drafts = host.round(limits, [1, 1])
        for draft, limit in zip(drafts, limits, strict=True):
            assert limit > 0 or (draft.token_ids, draft.is_hit) == ((), None)


def test_nothing_is_accounted_before_the_first_draft(way):
    """The prefill decides a token without a draft, and asks for its laws all the same."""
    host = Host(way)
    assert list(host.speculator.laws(host.requests[0], Speculation())) == []


def test_a_request_in_a_used_place_gets_nothing_of_the_one_before(way):
    """A sequence changes hands, with requests in the other order; drafts are those of a fresh speculator."""
    used = Host(way)
    for _ in range(3):
        used.round([3, 3], [2, 0])
    used.finish()
    other = ([7, 7, 7, 1], [2])
    again = Host(way, prompts=other, used=used)
    for request in again.requests:
        assert request.output_ids == [5]
    fresh = Host(way, prompts=other)
    for accept in ([0, 3], [2, 1], [3, 3]):
        assert _drafts(again.round([3, 3], accept)) == _drafts(fresh.round([3, 3], accept)) or _is_dead(again, fresh)


def test_requests_may_come_and_go_while_others_run(way):
    host = Host(way)
    host.round([3, 3], [1, 1])
    leaving = host.requests.pop(0)
    host.speculator.finish(leaving)
    host.round([3], [1])
    newcomer = WORLD.requests([[1], [3, 3], [6, 1, 6]], [SAMPLED] * 3)[2]
    newcomer.sequence = leaving.sequence
    host.speculator.start(newcomer)
    host._emit(newcomer, [1])
    host.requests.insert(0, newcomer)
    for _ in range(4):
        host.round([3, 3], [1, 2])
    host.finish()


def test_it_can_be_finished_without_a_start_and_closed_twice(way):
    speculator = way.speculator(WORLD, WORLD.target_model())
    (request,) = WORLD.requests([[1]], [SAMPLED])
    request.sequence = 0
    speculator.finish(request)
    speculator.close()
    speculator.close()


@pytest.mark.parametrize("name", ["sequential", "ssd"])
def test_reported_laws_are_the_drafts_own(name):
    way = replace(WAYS[name], speculative=replace(REJECTION, copy_from_context=False))
    host = Host(way, prompts=([1, 2, 3],))
    (request,) = host.requests
    for _ in range(3):
        before = [*request.prompt_ids, *request.output_ids]
        (draft,) = host.speculator.speculate(host.requests, [3])
        laws = host.speculator.laws(request, draft)
        assert len(draft.token_ids) >= 2
        for place, law in enumerate(laws):
            logits = LAW((*before, *draft.token_ids[:place])).astype(np.float64)
            expected = np.exp(logits - logits.max())
            np.testing.assert_allclose(law.dense_probs(), expected / expected.sum(), atol=1e-6)
        host._emit(request, [*draft.token_ids[:1], 6])
        host.speculator.observe(request, 1)


def _drafts(speculations):
    return [speculation.token_ids for speculation in speculations]


def _is_dead(*hosts):
    return any(not getattr(host.speculator, "is_alive", True) for host in hosts)
