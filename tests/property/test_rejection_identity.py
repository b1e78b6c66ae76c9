"""Rung 1 of losslessness: min(p, q) + (1 - sum min(p, q)) * residual == p, in float64, for every form of p and q.

And the verifier against a twin that works on dense vectors.
"""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from forerun.core.errors import ConfigError
from forerun.engine.law import ProcessedLaw
from forerun.engine.speculative.rejection import (
    acceptance_probability,
    residual_distribution,
    saguaro_rescale,
    verify_rejection,
)

VOCAB_SIZE = 9
TINY_RESIDUAL = ProcessedLaw.from_probs(
    np.array([0.25, 2.2e-16]), vocab_size=VOCAB_SIZE, ids=np.array([0, 8], np.int64)
)
"""Beside a draft that always says 0, a rejection leaves less than the last digit of a probability."""


@st.composite
def laws(draw, vocab_size=VOCAB_SIZE):
    """A law over the whole vocabulary, over a part of it, or one-hot; with zeros; float64."""
    kind = draw(st.sampled_from(["full", "part", "one-hot"]))
    if kind == "one-hot":
        return ProcessedLaw.one_hot(draw(st.integers(0, vocab_size - 1)), vocab_size=vocab_size)
    ids = None
    size = vocab_size
    if kind == "part":
        chosen = draw(st.sets(st.integers(0, vocab_size - 1), min_size=1))
        ids, size = np.array(sorted(chosen), np.int64), len(chosen)
    weights = np.array(draw(st.lists(st.floats(0, 1, width=32), min_size=size, max_size=size)), np.float64)
    assume(weights.max() > 1e-6)
    return ProcessedLaw.from_probs(weights, vocab_size=vocab_size, ids=ids)


def dense(target, probs):
    full = np.zeros(target.vocab_size)
    full[slice(None) if target.ids is None else target.ids] = probs
    return full


def emitted_law(target, draft):
    """The law of the token emitted at a position whose draft token is drawn from ``draft``."""
    q = draft.dense_probs()
    law = np.zeros(VOCAB_SIZE)
    for token_id in np.flatnonzero(q):
        accepted = acceptance_probability(target, draft, int(token_id))
        law[token_id] += q[token_id] * accepted
        law += q[token_id] * (1 - accepted) * dense(target, residual_distribution(target, draft, int(token_id)))
    return law


@settings(max_examples=500, deadline=None)
@given(laws(), laws())
def test_emitted_token_has_the_target_law(target, draft):
    np.testing.assert_allclose(emitted_law(target, draft), target.dense_probs(), atol=1e-14)


@settings(max_examples=300, deadline=None)
@given(laws(), laws())
@example(TINY_RESIDUAL, ProcessedLaw.one_hot(0, vocab_size=VOCAB_SIZE))
def test_identity_in_closed_form(target, draft):
    p, q = target.dense_probs(), draft.dense_probs()
    both = np.minimum(p, q)
    token_id = int(np.argmax(q))
    residual = dense(target, residual_distribution(target, draft, token_id))
    np.testing.assert_allclose(both + (1 - both.sum()) * residual, p, atol=1e-14)
    assert residual.sum() == pytest.approx(1, abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(laws(), st.integers(0, VOCAB_SIZE - 1))
def test_token_without_a_law_is_a_one_hot_draft(target, token_id):
    p = target.dense_probs()
    assert acceptance_probability(target, None, token_id) == pytest.approx(p[token_id], abs=1e-15)
    residual = dense(target, residual_distribution(target, None, token_id))
    if p[token_id] < 1:
        assert residual[token_id] == 0
        np.testing.assert_allclose(p[token_id] * np.eye(VOCAB_SIZE)[token_id] + (1 - p[token_id]) * residual, p)


@settings(max_examples=300, deadline=None)
@given(laws(), laws(), st.integers(0, VOCAB_SIZE), st.sampled_from([0.0, 1e-3, 0.3, 1.0]))
def test_saguaro_is_exact_and_moves_mass_off_the_top(target, draft, fan_out, c):
    rescaled = saguaro_rescale(draft, fan_out=fan_out, c=c)
    np.testing.assert_allclose(emitted_law(target, rescaled), target.dense_probs(), atol=1e-14)
    q = draft.dense_probs()
    top = sorted(range(VOCAB_SIZE), key=lambda v: (-q[v], v))[:fan_out]
    if 0 < fan_out < np.count_nonzero(q):
        weights = q.copy()
        weights[top] *= c
        np.testing.assert_allclose(rescaled.dense_probs(), weights / weights.sum(), atol=1e-12)


def plain_verify(target_laws, draft_ids, draft_laws, accept, residual, sample):
    """Accept and replace on dense vectors, from the paper's algorithm."""
    for i, token_id in enumerate(draft_ids):
        p, q = target_laws[i].dense_probs(), draft_laws[i].dense_probs()
        if accept[i] * q[token_id] < p[token_id]:
            continue
        law = np.maximum(p - q, 0)
        cumulative = np.cumsum(law / law.sum())
        assume(np.abs(cumulative - residual[i]).min() > 1e-9)
        return i, int(np.argmax(cumulative > residual[i]))
    cumulative = np.cumsum(target_laws[len(draft_ids)].dense_probs())
    assume(np.abs(cumulative - sample).min() > 1e-9)
    return len(draft_ids), int(np.argmax(cumulative > sample))


@st.composite
def rounds(draw):
    num_draft = draw(st.integers(0, 4))
    draft_laws = [draw(laws()) for _ in range(num_draft)]
    draft_ids = [draw(st.sampled_from(np.flatnonzero(q.dense_probs()).tolist())) for q in draft_laws]
    return [draw(laws()) for _ in range(num_draft + 1)], draft_ids, draft_laws


uniforms = st.floats(0.001, 0.999)


@settings(max_examples=400, deadline=None)
@given(rounds(), st.lists(uniforms, min_size=4, max_size=4), st.lists(uniforms, min_size=4, max_size=4), uniforms)
def test_verifier_against_dense_twin(case, accept, residual, sample):
    target_laws, draft_ids, draft_laws = case
    for i, token_id in enumerate(draft_ids):
        p, q = target_laws[i].dense_probs(), draft_laws[i].dense_probs()
        assume(abs(accept[i] * q[token_id] - p[token_id]) > 1e-12)
    noise = {("accept", i): u for i, u in enumerate(accept)} | {("residual", i): u for i, u in enumerate(residual)}
    noise["sample", len(draft_ids)] = sample
    got = verify_rejection(target_laws, draft_ids, draft_laws, lambda index, purpose: noise[purpose, index])
    assert got == plain_verify(target_laws, draft_ids, draft_laws, accept, residual, sample)


@settings(max_examples=100, deadline=None)
@given(rounds(), uniforms)
def test_no_law_is_read_after_a_rejection(case, u):
    target_laws, draft_ids, draft_laws = case
    num_read = 0

    def counted():
        nonlocal num_read
        for law in target_laws:
            num_read += 1
            yield law

    num_accepted, _ = verify_rejection(counted(), draft_ids, draft_laws, lambda index, purpose: u)
    assert num_read == num_accepted + 1


@pytest.mark.parametrize("fields", [{"c": -0.1, "fan_out": 1}, {"c": 1.1, "fan_out": 1}, {"c": 0.5, "fan_out": -1}])
def test_saguaro_refuses_bad_values(fields):
    with pytest.raises(ConfigError, match=r"saguaro_c=|fan_out="):
        saguaro_rescale(ProcessedLaw.one_hot(0, vocab_size=3), **fields)


@pytest.mark.parametrize("u", [5e-17, 0.5, 1 - 2**-53])
def test_extreme_quantiles_never_pick_an_impossible_token(u):
    law = ProcessedLaw.from_probs(np.array([0.0, 0.3, 0.0, 0.7, 0.0]), vocab_size=5)
    assert law.draw(u) in {1, 3}
