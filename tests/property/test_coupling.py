"""Shared noise: the output does not depend on the draft at all, and the two sides agree as often as theory says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.engine.law import ProcessedLaw
from forerun.engine.logits import LogitsProcessor
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.coupling import coupled_acceptance, coupled_token, coupled_tokens, verify_equal

VOCAB_SIZE = 12
PARAMS = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=0.8),
    SamplingParams(temperature=1.2, top_k=4),
    SamplingParams(top_p=0.8, min_p=0.05, repetition_penalty=1.3, frequency_penalty=0.2),
    SamplingParams(temperature=0, repetition_penalty=1.4, logit_bias={3: 2.0}, min_tokens=4),
]


def model_row(seed, context):
    """A model: logits that depend on its whole context."""
    return np.random.default_rng([seed, *context]).normal(scale=2.0, size=VOCAB_SIZE).astype(np.float32)


def decode(params, *, seed, num_tokens, draft_of):
    """Decode with drafts from ``draft_of(output)``, by the engine's own pieces."""
    prompt = [1, 2]
    processor = LogitsProcessor(params, prompt, (0,), VOCAB_SIZE)
    output = []
    while len(output) < num_tokens:
        draft = draft_of(output)
        rows = np.stack([model_row(1, prompt + output + draft[:i]) for i in range(len(draft) + 1)])
        if params.is_greedy:
            own = processor.greedy_tokens(rows, output, draft)
        else:
            own = coupled_tokens(
                processor.laws(rows, output, draft), seed=seed, request=0, first_position=len(prompt) + len(output)
            )
        num_accepted, token = verify_equal(own, draft)
        output = output + draft[:num_accepted] + [token]
    return output[:num_tokens]


@pytest.mark.parametrize("params", PARAMS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_any_draft_gives_the_tokens_of_plain_decoding(params, seed, data):
    drafts = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=5)
    plain = decode(params, seed=seed, num_tokens=8, draft_of=lambda output: [])

    def any_draft(output):
        if data.draw(st.booleans()):  # a good draft, so that tokens are accepted
            return plain[len(output) : len(output) + data.draw(st.integers(0, 5))]
        return data.draw(drafts)

    assert decode(params, seed=seed, num_tokens=8, draft_of=any_draft) == plain


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**63), st.integers(0, 1000), st.sets(st.integers(0, 199), min_size=1))
def test_a_reduced_vocabulary_sees_the_same_noise(seed, position, chosen):
    ids = np.array(sorted(chosen), np.int64)
    scores = np.random.default_rng(position).normal(size=200).astype(np.float32)
    reduced = ProcessedLaw(vocab_size=200, ids=ids, scores=scores[ids])
    others_banned = np.full(200, -np.inf, np.float32)
    others_banned[ids] = scores[ids]
    full = ProcessedLaw(vocab_size=200, ids=None, scores=others_banned)
    key = {"seed": seed, "request": 0, "position": position}
    assert coupled_token(reduced, **key) == coupled_token(full, **key)


@given(st.integers(1, 40), st.integers(0, 2**32))
def test_acceptance_lies_between_its_bounds(size, seed):
    generator = np.random.default_rng(seed)
    p, q = generator.dirichlet(np.full(size, 0.5), size=2)
    distance = np.abs(p - q).sum() / 2
    assert (1 - distance) / (1 + distance) - 1e-12 <= coupled_acceptance(p, q) <= 1 - distance + 1e-12
    assert coupled_acceptance(p, p) == pytest.approx(1)


def test_acceptance_of_laws_that_share_nothing_is_zero():
    assert coupled_acceptance(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 0


def test_no_token_is_read_after_a_difference():
    def own_tokens():
        yield from (5, 6)
        raise AssertionError("read past the first difference")

    assert verify_equal(own_tokens(), [5, 7, 8]) == (1, 6)
    assert verify_equal(iter([5, 6, 9]), [5, 6]) == (2, 9)
    assert verify_equal(iter([4]), []) == (0, 4)
