"""The law of one token: the same probabilities however it is asked."""

import math

import numpy as np
import pytest

from forerun.engine.law import ProcessedLaw

LAWS = [
    ProcessedLaw.from_probs(np.array([0.1, 0.0, 0.6, 0.3]), vocab_size=4),
    ProcessedLaw.from_probs(np.array([0.25, 0.75]), vocab_size=9, ids=np.array([2, 7], np.int64)),
    ProcessedLaw(vocab_size=5, ids=None, scores=np.array([3, -np.inf, 2, 20, -9], np.float32)),
    ProcessedLaw.one_hot(3, vocab_size=6),
]


@pytest.mark.parametrize("law", LAWS)
def test_forms_of_a_probability_agree(law):
    dense = law.dense_probs()
    assert dense.shape == (law.vocab_size,)
    assert dense.sum() == pytest.approx(1, abs=1e-12)
    assert [law.prob(v) for v in range(law.vocab_size)] == pytest.approx(dense.tolist(), abs=1e-12)
    for token_id in np.flatnonzero(dense):
        entry = law.logprob(int(token_id), num_top=2)
        assert entry.logprob_nats == pytest.approx(math.log(dense[token_id]), abs=1e-6)
        assert law.token_at(law.index_of(int(token_id))) == token_id


@pytest.mark.parametrize("law", LAWS)
def test_draws_invert_the_cumulative_law(law):
    num = 4000
    draws = np.bincount([law.draw((i + 0.5) / num) for i in range(num)], minlength=law.vocab_size)
    np.testing.assert_allclose(draws / num, law.dense_probs(), atol=1 / num)


def test_tokens_that_are_no_candidates_have_no_probability():
    law = LAWS[1]
    assert law.index_of(0) is None
    assert law.index_of(8) is None
    assert law.prob(0) == 0
    assert law.logprob(0, num_top=0).logprob_nats == -math.inf
    assert LAWS[0].index_of(4) is None


def test_top_alternatives_are_best_first_then_by_id():
    law = ProcessedLaw(vocab_size=5, ids=None, scores=np.array([1, 2, 2, -np.inf, 0], np.float32))
    assert [token for token, _ in law.logprob(0, num_top=3).top] == [1, 2, 0]
    assert len(law.logprob(0, num_top=20).top) == 4
    assert law.logprob(0, num_top=0).top == ()


def test_is_one_hot():
    assert [law.is_one_hot for law in LAWS] == [False, False, False, True]
