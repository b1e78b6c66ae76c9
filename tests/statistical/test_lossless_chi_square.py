"""Rung 3 of losslessness for the pure functions, with their real noise: output laws by chi-square, in 4 tokens.

The verifiers draw from counter-based streams exactly as the engine keys them, so a stream used for two decisions would
show here. Each check has a false-alarm probability of 1e-4; rung 4, the negative controls, runs the same check on
verifiers with a small fault at the same sample size.
"""

import itertools

import numpy as np
import pytest

from forerun.core.rng import uniform
from forerun.engine.law import ProcessedLaw
from forerun.engine.speculative.coupling import coupled_acceptance, coupled_token, coupled_tokens, verify_equal
from forerun.engine.speculative.rejection import saguaro_rescale, verify_rejection

pytestmark = pytest.mark.statistical
NUM_RUNS = 12_000
VOCAB_SIZE, LENGTH, NUM_DRAFT = 4, 3, 2


def markov_laws(seed):
    rows = np.random.default_rng(seed).dirichlet(np.full(VOCAB_SIZE, 2.0), size=VOCAB_SIZE + 1)
    return [ProcessedLaw.from_probs(row, vocab_size=VOCAB_SIZE) for row in rows]


TARGET, DRAFT = markov_laws(1), markov_laws(2)
SAGUARO = [saguaro_rescale(law, fan_out=1, c=0.3) for law in DRAFT]


def law_after(laws, prefix):
    return laws[prefix[-1] if prefix else -1]


def output_law():
    p = np.array([law.dense_probs() for law in TARGET])
    return np.array(
        [
            np.prod([p[sequence[i - 1] if i else -1, token] for i, token in enumerate(sequence)])
            for sequence in itertools.product(range(VOCAB_SIZE), repeat=LENGTH)
        ]
    )


def decode_by_rejection(seed, request, *, draft, reported=None, accept_purpose="accept"):
    """Rounds of accept and replace until the output is long enough."""
    output = ()
    while len(output) < LENGTH:
        start = len(output)
        ids = ()
        for i in range(NUM_DRAFT):
            ids += (law_after(draft, output + ids).draw(uniform(seed, request, start + i, "draft")),)
        num_accepted, token = verify_rejection(
            [law_after(TARGET, output + ids[:i]) for i in range(NUM_DRAFT + 1)],
            ids,
            [law_after(reported or draft, output + ids[:i]) for i in range(NUM_DRAFT)],
            lambda index, purpose, start=start: uniform(
                seed, request, start + index, accept_purpose if purpose == "accept" else purpose
            ),
        )
        output += (*ids[:num_accepted], token)
    return output[:LENGTH]


def decode_coupled(seed, request, *, draft, draft_request_offset=0):
    """Rounds of shared noise until the output is long enough."""
    output = ()
    while len(output) < LENGTH:
        ids = ()
        for i in range(NUM_DRAFT):
            key = {"seed": seed, "request": request + draft_request_offset, "position": len(output) + i}
            ids += (coupled_token(law_after(draft, output + ids), **key),)
        laws = [law_after(TARGET, output + ids[:i]) for i in range(NUM_DRAFT + 1)]
        own = coupled_tokens(laws, seed=seed, request=request, first_position=len(output))
        num_accepted, token = verify_equal(own, ids)
        output += (*ids[:num_accepted], token)
    return output[:LENGTH]


def counts_of(decode, seed):
    counts = np.zeros((VOCAB_SIZE,) * LENGTH)
    for request in range(NUM_RUNS):
        counts[decode(seed, request)] += 1
    return counts


@pytest.mark.parametrize(
    ("name", "decode"),
    [
        ("rejection", lambda seed, request: decode_by_rejection(seed, request, draft=DRAFT)),
        ("rejection, Saguaro", lambda seed, request: decode_by_rejection(seed, request, draft=SAGUARO)),
        ("coupled", lambda seed, request: decode_coupled(seed, request, draft=DRAFT)),
        ("coupled, unrelated noise in the draft", lambda seed, request: decode_coupled(
            seed, request, draft=DRAFT, draft_request_offset=1
        )),
    ],
)  # fmt: skip
def test_output_law(name, decode, assert_law):
    assert_law(counts_of(decode, 11), output_law(), seed=11)


@pytest.mark.parametrize(
    ("name", "decode"),
    [
        (
            "raw q reported for a Saguaro draft",
            lambda seed, request: decode_by_rejection(seed, request, draft=SAGUARO, reported=DRAFT),
        ),
        (
            "one number drafts and accepts",
            lambda seed, request: decode_by_rejection(seed, request, draft=DRAFT, accept_purpose="draft"),
        ),
        (
            "one number accepts and replaces",
            lambda seed, request: decode_by_rejection(seed, request, draft=DRAFT, accept_purpose="residual"),
        ),
    ],
)
def test_faulty_verifiers_are_caught(name, decode, assert_not_law):
    assert_not_law(counts_of(decode, 11), output_law())


def test_coupled_acceptance_rate_is_the_closed_form(assert_law):
    p, q = TARGET[0], DRAFT[0]
    key = {"seed": 5, "request": 0}
    agreed = sum(coupled_token(p, position=t, **key) == coupled_token(q, position=t, **key) for t in range(40_000))
    expected = coupled_acceptance(p.dense_probs(), q.dense_probs())
    assert_law(np.array([agreed, 40_000 - agreed]), np.array([expected, 1 - expected]), seed=5)
