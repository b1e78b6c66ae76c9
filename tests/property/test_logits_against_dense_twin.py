"""The law at each position of a draft, against a twin that recomputes everything from the definition."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from forerun.core.errors import RequestError
from forerun.engine.logits import LogitsProcessor
from forerun.engine.sampling import SamplingParams

EOS = (1, 5)


def twin_logits(row, params, prompt_ids, output_ids):
    """Steps 1 to 3: bias, penalties, min_tokens."""
    z = row.astype(np.float64)
    for token_id, bias in params.logit_bias.items():
        z[token_id] += bias
    for v in range(len(z)):
        if v in prompt_ids or v in output_ids:
            z[v] = z[v] / params.repetition_penalty if z[v] > 0 else z[v] * params.repetition_penalty
        z[v] -= params.frequency_penalty * list(output_ids).count(v)
        z[v] -= params.presence_penalty * (v in output_ids)
    if len(output_ids) < params.min_tokens:
        for v in (*params.stop_token_ids, *(() if params.ignore_eos else EOS)):
            z[v] = -math.inf
    return z.astype(np.float32)


def twin_probs(row, params, prompt_ids, output_ids):
    """Steps 1 to 5 as dense float64 probabilities; skips cases decided by rounding."""
    z = twin_logits(row, params, prompt_ids, output_ids)
    if params.temperature == 0:
        return np.eye(len(z))[int(np.argmax(z))]
    z = (z / np.float32(params.temperature)).astype(np.float64)
    if params.top_k:
        kth = sorted(z, reverse=True)[min(params.top_k, len(z)) - 1]
        z = np.where(z >= kth, z, -math.inf)
    if params.top_p < 1:
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        mass = np.cumsum(sorted(p, reverse=True))
        assume(np.abs(mass - params.top_p).min() > 1e-5)
        smallest_kept = sorted(z, reverse=True)[int(np.argmax(mass >= params.top_p))]
        z = np.where(z >= smallest_kept, z, -math.inf)
    if params.min_p > 0:
        cut = z.max() + math.log(params.min_p)
        assume(params.min_p == 1 or np.abs(z - cut).min() > 1e-4)
        z = np.where(z >= cut, z, -math.inf)
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def sampling_params(vocab_size):
    token = st.integers(0, vocab_size - 1)
    return st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.5]),
        top_k=st.sampled_from([0, 0, 1, 2, 3, 5, 100]),
        top_p=st.sampled_from([1.0, 1.0, 0.95, 0.7, 0.3, 1e-6]),
        min_p=st.sampled_from([0.0, 0.0, 0.02, 0.3, 1.0]),
        repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.7]),
        presence_penalty=st.sampled_from([0.0, 0.0, 0.5, -1.5]),
        frequency_penalty=st.sampled_from([0.0, 0.0, 0.25, -0.5]),
        logit_bias=st.dictionaries(token, st.sampled_from([-math.inf, -2.0, 0.25, 5.0]), max_size=3),
        stop_token_ids=st.lists(token, max_size=2).map(tuple),
        min_tokens=st.sampled_from([0, 0, 2, 5]),
        ignore_eos=st.booleans(),
    )


@st.composite
def cases(draw):
    vocab_size = draw(st.integers(8, 24))
    token = st.integers(0, vocab_size - 1)
    params = draw(sampling_params(vocab_size))
    # Eighths make ties common, and keep sums with the biases exact.
    logits = st.lists(st.integers(-64, 64), min_size=vocab_size, max_size=vocab_size)
    draft = draw(st.lists(token, max_size=4))
    rows = np.array([draw(logits) for _ in range(len(draft) + 1)], np.float32) / 8
    return params, draw(st.lists(token, max_size=6)), draw(st.lists(token, max_size=6)), draft, rows


@settings(max_examples=250, deadline=None)
@given(cases())
def test_law_at_each_draft_position(case):
    params, prompt_ids, output_ids, draft, rows = case
    processor = LogitsProcessor(params, prompt_ids, EOS, rows.shape[1])
    before = rows.copy()
    laws = list(processor.laws(rows, output_ids, draft))
    assert len(laws) == len(draft) + 1
    for i, law in enumerate(laws):
        expected = twin_probs(rows[i], params, prompt_ids, output_ids + draft[:i])
        np.testing.assert_array_equal(law.dense_probs() > 0, expected > 0)
        np.testing.assert_allclose(law.dense_probs(), expected, atol=2e-6)
        np.testing.assert_array_equal(
            processor.process(rows[i], output_ids + draft[:i]).dense_probs(), law.dense_probs()
        )
    assert np.array_equal(rows, before), "the caller's logits were changed"


@settings(max_examples=150, deadline=None)
@given(cases(), st.data())
def test_history_follows_rejections(case, data):
    # Rounds that accept any part of their draft leave the same counts as a processor that saw only the result.
    params, prompt_ids, output_ids, draft, rows = case
    processor = LogitsProcessor(params, prompt_ids, EOS, rows.shape[1])
    for _ in range(3):
        num_read = data.draw(st.integers(0, len(draft) + 1))
        laws = processor.laws(rows, output_ids, draft)
        for _ in range(num_read):
            next(laws)
        output_ids = output_ids + draft[: data.draw(st.integers(0, len(draft)))] + [data.draw(st.integers(0, 7))]
    fresh = LogitsProcessor(params, prompt_ids, EOS, rows.shape[1])
    for used_law, fresh_law in zip(
        processor.laws(rows, output_ids, draft), fresh.laws(rows, output_ids, draft), strict=True
    ):
        np.testing.assert_array_equal(used_law.dense_probs(), fresh_law.dense_probs())


@settings(max_examples=150, deadline=None)
@given(cases())
def test_greedy_tokens_are_the_modes_of_the_greedy_laws(case):
    params, prompt_ids, output_ids, draft, rows = case
    processor = LogitsProcessor(params, prompt_ids, EOS, rows.shape[1])
    tokens = list(processor.greedy_tokens(rows, output_ids, draft))
    for i, token in enumerate(tokens):
        assert token == int(np.argmax(twin_logits(rows[i], params, prompt_ids, output_ids + draft[:i])))


@settings(max_examples=200, deadline=None)
@given(cases(), st.data())
def test_reduced_vocabulary_is_the_full_one_with_the_rest_banned(case, data):
    params, prompt_ids, output_ids, draft, rows = case
    vocab_size = rows.shape[1]
    ids = np.array(sorted(data.draw(st.sets(st.integers(0, vocab_size - 1), min_size=1))), np.int64)
    banned = set(params.stop_token_ids) | set(EOS) | {v for v, b in params.logit_bias.items() if b == -math.inf}
    assume(not set(ids.tolist()) <= banned)
    reduced = LogitsProcessor(params, prompt_ids, EOS, vocab_size, candidate_ids=ids)
    full_rows = np.full_like(rows, -np.inf)
    full_rows[:, ids] = rows[:, ids]
    full = LogitsProcessor(params, prompt_ids, EOS, vocab_size)
    for reduced_law, full_law in zip(
        reduced.laws(rows[:, ids], output_ids, draft), full.laws(full_rows, output_ids, draft), strict=True
    ):
        np.testing.assert_allclose(reduced_law.dense_probs(), full_law.dense_probs(), atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 30))
def test_logprobs_are_those_of_the_reported_law(case, num_top):
    params, prompt_ids, output_ids, _, rows = case
    processor = LogitsProcessor(params, prompt_ids, EOS, rows.shape[1])
    law = processor.reported_law(rows[0], output_ids)
    if params.is_greedy:
        z = twin_logits(rows[0], params, prompt_ids, output_ids).astype(np.float64)
        expected = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    else:
        expected = twin_probs(rows[0], params, prompt_ids, output_ids)
    token = int(np.argmax(expected))
    entry = law.logprob(token, num_top=num_top)
    assert entry.token_id == token
    assert entry.logprob_nats == pytest.approx(math.log(expected[token]), abs=1e-5)
    best_first = sorted(np.flatnonzero(expected > 0), key=lambda v: (-float(np.float32(expected[v])), v))[:num_top]
    assert len(entry.top) == len(best_first)
    np.testing.assert_allclose([lp for _, lp in entry.top], [math.log(expected[v]) for v in best_first], atol=1e-5)
    assert all(lp == pytest.approx(math.log(expected[v]), abs=1e-5) for v, lp in entry.top)


def test_no_token_left_is_refused():
    params = SamplingParams(min_tokens=1, stop_token_ids=(0, 1))
    with pytest.raises(RequestError, match=r"min_tokens=1: stop tokens and banned tokens are the whole vocabulary"):
        LogitsProcessor(params, [], (2,), 3)


@pytest.mark.parametrize(
    "params",
    [SamplingParams(temperature=0), SamplingParams(top_p=0.9), SamplingParams(min_p=0.1)],
)
def test_broken_logits_are_refused(params):
    processor = LogitsProcessor(params, [], (), 4)
    with pytest.raises(FloatingPointError, match="largest logit is nan"):
        processor.process(np.array([0, 1, math.nan, 2], np.float32), [])


@pytest.mark.parametrize("vocab_size", [1025, 5000, 49152])
@pytest.mark.parametrize("top_k", [1, 2, 50, 700])
def test_large_vocabulary_top_k_keeps_what_a_full_sort_keeps(vocab_size, top_k):
    # Sixteenths: the k-th largest is tied with others.
    row = np.round(16 * np.random.default_rng(top_k).normal(size=vocab_size)).astype(np.float32) / 16
    for logits in (row, np.sort(row), np.sort(row)[::-1].copy()):
        law = LogitsProcessor(SamplingParams(top_k=top_k), [], (), vocab_size).process(logits, [])
        assert law.ids is not None
        assert law.ids.tolist() == np.flatnonzero(logits >= np.sort(logits)[-top_k]).tolist()


def test_large_vocabulary_top_p_keeps_what_a_full_sort_keeps():
    generator = np.random.default_rng(0)
    for top_p in (0.5, 0.9, 0.999):
        row = (4 * generator.normal(size=49152)).astype(np.float32)
        law = LogitsProcessor(SamplingParams(top_p=top_p), [], (), 49152).process(row, [])
        p = np.exp(row.astype(np.float64))
        p /= p.sum()
        num_kept = int(np.argmax(np.cumsum(np.sort(p)[::-1]) >= top_p)) + 1
        assert law.ids is not None
        assert sorted(law.ids.tolist()) == sorted(np.argsort(-p)[:num_kept].tolist())
