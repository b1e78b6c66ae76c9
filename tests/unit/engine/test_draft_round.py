"""A draft's round in one launch, against the dense decoder and the host's ranking of outcomes."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from simulated.heads import SlowHead, random_head_weights
from simulated.recording import TracingRecorder

from forerun.core.rng import uniform
from forerun.core.rows import Rows
from forerun.core.selection import Choice
from forerun.engine.config import SpeculativeConfig
from forerun.engine.law import ProcessedLaw
from forerun.engine.logits import LogitsProcessor
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.choice import DraftChoice
from forerun.engine.speculative.coupling import coupled_token
from forerun.engine.speculative.device_drafter import DeviceSsdSpeculator
from forerun.engine.speculative.draft_round import Chain, DraftRounds
from forerun.engine.speculative.fan_out import joint_outcomes
from forerun.models.config import DecoderConfig
from forerun.models.decoder_weights import fill_decoder
from forerun.models.device_head import DeviceHead
from forerun.models.device_runner import DeviceRunner
from forerun.models.eagle3 import Eagle3Config
from forerun.models.eagle3_runner import fill_head
from forerun.models.layout import parameter_shapes

CONFIG = DecoderConfig(
    vocab_size=53, hidden_size=24, intermediate_size=40, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6,
    max_len=256,
)  # fmt: skip
SEED = 11
REDUCED = np.array([0, 1, 4, 9, 16, 25, 26, 36, 40, 41, 49, 52])


def decoder():
    rng = np.random.default_rng(5)
    weights = {
        name: (rng.standard_normal(shape) * (1.5 / shape[-1] ** 0.5)).astype(np.float32)
        for name, shape in parameter_shapes(CONFIG).items()
    }
    return fill_decoder(CONFIG, weights.__getitem__)


class Draft:
    """A draft in rounds, and what it should do, worked out from scratch."""

    def __init__(self, *, recorder=None, vocab_ids=None, temperature=0.0, capacity=120, most_drawn=0, **truncation):
        self.decoder, self.vocab_ids, self.truncation = decoder(), vocab_ids, truncation
        self.temperature = temperature
        self.params = SamplingParams(temperature=temperature, seed=SEED, **truncation)
        self.runner = DeviceRunner(
            self.decoder, num_sequences=3, capacity=capacity, vocab_ids=vocab_ids, recorder=recorder, num_tree_slots=64
        )
        self.rounds = DraftRounds(self.runner, most_drawn=most_drawn)

    def chain(self, sequence: int, text: list[int], num_tokens: int) -> Chain:
        """Cache all of a text but its last tokens, which become the chain."""
        start = len(text) - num_tokens
        if start:
            self.runner.read(Rows.chains([(sequence, 0, text[:start])]))
        return Chain(
            sequence=sequence,
            start=start,
            tokens=text[start:],
            choice=Choice(temperature=self.temperature, seed=SEED, request=sequence, **self.truncation),
        )

    def logits(self, text: list[int]) -> np.ndarray:
        with torch.no_grad():
            row = self.decoder(torch.tensor([text]))[0, -1].numpy()
        return row if self.vocab_ids is None else row[self.vocab_ids]

    def law(self, text: list[int]) -> ProcessedLaw:
        processor = LogitsProcessor(self.params, [], frozenset(), CONFIG.vocab_size, candidate_ids=self.vocab_ids)
        return processor.process(self.logits(text), [])

    def token(self, text: list[int], request: int) -> int:
        return coupled_token(self.law(text), seed=SEED, request=request, position=len(text))

    def continuation(self, text: list[int], request: int, length: int) -> list[int]:
        text = list(text)
        for _ in range(length):
            text.append(self.token(text, request))
        return text[len(text) - length :]

    def outcomes(self, text: list[int], num_speculated: int, request: int, budget: int) -> list[tuple[int, int]]:
        choice = DraftChoice(
            self.params,
            SpeculativeConfig(copy_from_context=False),
            text[:1],
            frozenset(),
            vocab_size=CONFIG.vocab_size,
            vocab_ids=self.vocab_ids,
            request_number=request,
        )
        decided = len(text) - num_speculated
        ranked = [
            choice.ranked(self.logits(text[: decided + k]), text[1 : decided + k], count=budget + 1)
            for k in range(num_speculated + 1)
        ]
        return joint_outcomes(ranked, text[decided:], budget=budget)


class HeadDraft(Draft):
    """The same of an EAGLE-3 head: what the target has read of a text is known by made-up hidden states."""

    head_config = Eagle3Config(
        layer=replace(CONFIG, num_layers=1), layer_ids=(0, 1), target_hidden_size=10, draft_vocab_size=len(REDUCED)
    )

    def __init__(self, *, recorder=None, temperature=0.0, **truncation):
        super().__init__(vocab_ids=REDUCED, temperature=temperature, **truncation)
        weights = random_head_weights(self.head_config)
        head = fill_head(self.head_config, weights.__getitem__, dtype=torch.float32)
        self.slow = SlowHead(config=self.head_config, weights=weights)
        self.runner = DeviceHead(
            head, num_sequences=3, capacity=120, vocab_ids=REDUCED, recorder=recorder, num_tree_slots=64
        )
        self.rounds = DraftRounds(self.runner)
        self.features = np.random.default_rng(3).standard_normal((120, 2, 10)).astype(np.float32)
        self.num_given = 0

    def chain(self, sequence, text, num_tokens, *, num_speculated=0):
        self.num_given = len(text) - 1 - num_speculated
        self.runner.take_features(sequence, 0, self.features[: self.num_given])
        start = len(text) - num_tokens
        if start > 1:
            self.runner.read(Rows.chains([(sequence, 1, text[1:start])]))
        choice = Choice(temperature=self.temperature, seed=SEED, request=sequence, **self.truncation)
        return Chain(sequence=sequence, start=start, tokens=text[start:], choice=choice)

    def logits(self, text):
        return self.slow.logits(text, self.features[: self.num_given])[-1].astype(np.float32)


def text(length, seed=0) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length).tolist()


CASES = [
    {},
    {"temperature": 0.8},
    {"vocab_ids": REDUCED},
    {"temperature": 1.3, "vocab_ids": REDUCED},
    {"temperature": 1.1, "top_p": 0.7, "min_p": 0.02},
    {"temperature": 1.3, "top_k": 5, "vocab_ids": REDUCED},
]


@pytest.mark.parametrize("options", CASES)
def test_extending_is_drafting_one_token_after_the_other(options):
    draft = Draft(**options)
    texts = {0: text(12), 2: text(30, seed=1)}
    chains = [draft.chain(0, texts[0], 1), draft.chain(2, texts[2], 2)]
    tokens = draft.rounds.extend(chains, num_tokens=4).result()
    for sequence, before in texts.items():
        assert tokens[sequence].tolist() == draft.continuation(before, sequence, 4)


@pytest.mark.parametrize("options", CASES)
def test_outcomes_are_the_hosts_and_continuations_the_drafts_own(options):
    draft = Draft(**options)
    texts = {0: [*text(10), *([4, 9, 16] if "vocab_ids" in options else [])], 1: text(41, seed=1)}
    num_speculated = {0: 3, 1: 2}
    chains = [draft.chain(sequence, some, num_speculated[sequence] + 1) for sequence, some in texts.items()]
    found = draft.rounds.prepare(chains, num_outcomes=7, depth=3).result()
    for sequence, some in texts.items():
        expected = draft.outcomes(some, num_speculated[sequence], sequence, 7)
        assert [tuple(row[:2]) for row in found[sequence].tolist()] == expected
        decided = len(some) - num_speculated[sequence]
        for num_accepted, token, *continuation in found[sequence].tolist():
            before = [*some[: decided + num_accepted], token]
            assert continuation == draft.continuation(before, sequence, 3)


@pytest.mark.parametrize("options", CASES[:4])
def test_parts_of_the_outcomes_are_those_of_the_whole(options):
    """Also of more than there are: a part that is past the end has none."""
    draft = Draft(**options)
    chains = [draft.chain(0, text(10), 3), draft.chain(1, text(41, seed=1), 2)]
    for total, ends in ((7, (0, 3, 5, 7)), (60, (0, 20, 40, 60))):
        whole = draft.rounds.prepare(chains, num_outcomes=total, depth=1).result()
        parts = [
            draft.rounds.prepare(chains, num_outcomes=total, depth=1, part=part).result() for part in pairwise(ends)
        ]
        joined = np.concatenate(parts, axis=1)
        is_there = whole[..., 0] >= 0
        np.testing.assert_array_equal(joined[..., 0], whole[..., 0])
        np.testing.assert_array_equal(joined[is_there], whole[is_there])
        assert is_there[:2].all() or total == 60


def test_a_prepared_chain_is_cached_and_the_tree_is_out_of_its_way():
    draft = Draft()
    some = text(20)
    chain = draft.chain(0, some, 4)
    draft.rounds.prepare([chain], num_outcomes=5, depth=2).result()
    later = Chain(sequence=0, start=len(some), tokens=[3], choice=Choice(temperature=0.0, seed=SEED, request=0))
    tokens = draft.rounds.extend([later], num_tokens=3).result()[0]
    assert tokens.tolist() == draft.continuation([*some, 3], 0, 3)


def assert_drawn(draft: Draft, text: list[int], request: int, tokens: list[int], scores: np.ndarray) -> None:
    """Check that tokens after a text were drawn one after the other, from the laws that are said."""
    for token, row in zip(tokens, scores, strict=True):
        law = draft.law(text)
        assert token == law.draw(uniform(SEED, request, len(text), "draft"))
        full = np.full(CONFIG.vocab_size, -np.inf, np.float32)
        full[law.ids] = law.scores
        np.testing.assert_allclose(row, full if draft.vocab_ids is None else full[draft.vocab_ids], atol=1e-4)
        text = [*text, token]


@pytest.mark.parametrize("vocab_ids", [None, REDUCED])
def test_tokens_drawn_for_rejection_come_with_their_laws(vocab_ids):
    """Those of a tree stay while another sequence is drafted for."""
    draft = Draft(temperature=1.2, top_k=9, vocab_ids=vocab_ids, most_drawn=4)
    first, second = [*text(10), 4, 9], text(21, seed=1)
    trees = draft.rounds.prepare([draft.chain(0, first, 3)], num_outcomes=5, depth=3).result()[0]
    draft.rounds.prepare([draft.chain(1, second, 1)], num_outcomes=5, depth=3).result()
    of_trees = draft.rounds.tree_scores[0].numpy()
    for branch, (num_accepted, token, *continuation) in enumerate(trees.tolist()):
        before = [*first[: len(first) - 2 + num_accepted], token]
        assert_drawn(draft, before, 0, continuation, of_trees[branch : branch + 15 : 5])
    tokens = draft.rounds.extend([draft.chain(1, second, 2)], num_tokens=4).result()[1]
    assert_drawn(draft, second, 1, tokens.tolist(), draft.rounds.chain_scores[1].numpy())


def test_rounds_are_recorded_once_and_replayed_on_other_texts():
    recorder = TracingRecorder()
    draft = Draft(recorder=recorder)
    for seed, length in enumerate((9, 17, 26)):
        some = text(length, seed=seed)
        chain = draft.chain(0, some, 3)
        found = draft.rounds.prepare([chain], num_outcomes=4, depth=2).result()[0]
        assert [tuple(row[:2]) for row in found.tolist()] == draft.outcomes(some, 2, 0, 4)
        for num_accepted, token, *continuation in found.tolist():
            before = [*some[: len(some) - 2 + num_accepted], token]
            assert continuation == draft.continuation(before, 0, 2)
        tokens = draft.rounds.extend([draft.chain(0, some, 1)], num_tokens=2).result()[0]
        assert tokens.tolist() == draft.continuation(some, 0, 2)
    assert recorder.num_records == 2


def test_where_fewer_outcomes_are_likely_the_rest_says_so():
    """Twelve columns and one place: eleven beside none drafted, or fewer within reach, of twenty asked for."""
    draft = Draft(vocab_ids=REDUCED)
    found = draft.rounds.prepare([draft.chain(1, text(8), 1)], num_outcomes=20, depth=1).result()[1]
    expected = draft.outcomes(text(8), 0, 1, 20)
    assert len(expected) < 20
    valid = [tuple(row[:2]) for row in found.tolist() if row[0] >= 0]
    assert valid == expected


def test_a_sequence_with_less_room_does_not_disturb_the_others():
    draft = Draft(capacity=40)
    full, other = text(39), text(12, seed=1)
    chains = [draft.chain(0, full, 1), draft.chain(1, other, 1)]
    tokens = draft.rounds.extend(chains, num_tokens=6).result()
    assert tokens[0, :2].tolist() == draft.continuation(full, 0, 2)
    assert tokens[1].tolist() == draft.continuation(other, 1, 6)
    again = draft.rounds.extend([draft.chain(1, [*other, *tokens[1, :5].tolist()], 1)], num_tokens=2).result()
    assert again[1].tolist() == draft.continuation([*other, *tokens[1, :5].tolist()], 1, 2)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.2, "top_k": 5}])
def test_a_head_drafts_from_the_targets_states_and_then_its_own(options):
    draft = HeadDraft(**options)
    some = text(12)
    tokens = draft.rounds.extend([draft.chain(1, some, 3)], num_tokens=4).result()[1]
    assert tokens.tolist() == draft.continuation(some, 1, 4)


def test_a_head_prepares_along_every_branch_and_is_recorded_once():
    recorder = TracingRecorder()
    draft = HeadDraft(recorder=recorder, temperature=0.9)
    for seed, length in enumerate((9, 14)):
        some = text(length, seed=seed)
        chain = draft.chain(0, some, 3, num_speculated=2)
        found = draft.rounds.prepare([chain], num_outcomes=5, depth=2).result()[0]
        assert [tuple(row[:2]) for row in found.tolist()] == draft.outcomes(some, 2, 0, 5)
        for num_accepted, token, *continuation in found.tolist():
            before = [*some[: len(some) - 2 + num_accepted], token]
            assert continuation == draft.continuation(before, 0, 2)
    assert recorder.num_records == 1


class WatchedDraft:
    """A draft that prepares nothing, and notes how deep it was asked to."""

    laws_at, reads_prompts = "nowhere", True

    def __init__(self) -> None:
        self.depths: list[int] = []

    def start(self, _request, *, is_ahead) -> None:
        assert is_ahead

    def begin_round(self) -> None:
        pass

    def hand_over_branches(self, _drafts, *, num_outcomes) -> None:
        pass

    def prepare(self, _requests, _speculations, *, num_outcomes, depth):
        self.depths.append(depth)
        return SimpleNamespace(result=lambda: np.full((1, num_outcomes, 2 + depth), -1))


def test_preparations_are_as_deep_as_the_drafts_of_late():
    """Not as the longest ever, nor at once as a shorter one: a text near its end asks for less, and each is a graph."""
    draft, request = WatchedDraft(), SimpleNamespace(index=0, sequence=0, output_ids=[1], is_resumed=False)
    speculator = DeviceSsdSpeculator(draft, num_outcomes=3, depth=4, fallback="none")
    speculator.start(request)
    for limit in [6] * 3 + [2] * 20:
        speculator.speculate([request], [limit])
        speculator.prepare()
        request.output_ids.append(1)
    assert draft.depths == [4, 6, 6, 6] + [6] * 15 + [2] * 5
