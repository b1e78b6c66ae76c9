"""The exact law of the output over rounds: every draft, decision and recovered token is summed over, by weight."""

import itertools
from collections import defaultdict
from functools import cache

import numpy as np

from forerun.engine.speculative.rejection import acceptance_probability, residual_distribution


def law_after(laws, prefix):
    """Return the law after a prefix: of a Markov model, or of a function of the whole prefix."""
    return laws(prefix) if callable(laws) else laws[prefix[-1] if prefix else -1]


def target_output_law(laws, length):
    """The law of autoregressive decoding."""
    vocab_size = law_after(laws, ()).vocab_size
    expected = {}
    for sequence in itertools.product(range(vocab_size), repeat=length):
        expected[sequence] = 1.0
        for i, token in enumerate(sequence):
            if expected[sequence] > 0:  # beyond what is impossible there may be no law
                expected[sequence] *= dense_probs(law_after(laws, sequence[:i]))[token]
    return expected


@cache
def dense_probs(law):
    return law.dense_probs()


@cache
def exact_rule(target, draft, token_id):
    """(acceptance probability, dense law of the replacement)."""
    residual = np.zeros(target.vocab_size)
    residual[slice(None) if target.ids is None else target.ids] = residual_distribution(target, draft, token_id)
    return acceptance_probability(target, draft, token_id), residual


def round_outcomes(rule, target, prefix, draft_ids, draft_laws):
    """Yield (probability, num_accepted, token) of one verification."""
    reached = 1.0
    for k, (token_id, draft_law) in enumerate(zip(draft_ids, draft_laws, strict=True)):
        accepted, residual = rule(law_after(target, prefix + draft_ids[:k]), draft_law, token_id)
        for token in np.flatnonzero(residual):
            yield reached * (1 - accepted) * residual[token], k, int(token)
        reached *= accepted
        if reached == 0:
            return
    bonus = dense_probs(law_after(target, prefix + draft_ids))
    for token in np.flatnonzero(bonus):
        yield reached * bonus[token], len(draft_ids), int(token)


def enumerated_output_law(drafter, length, *, target, rule=exact_rule):
    """Sum over everything that can happen until ``length`` tokens are out."""
    law = defaultdict(float)
    states = {((), None): 1.0}  # (output, last outcome) -> probability; outputs shorter than ``length``
    while states:
        longer = defaultdict(float)
        for (prefix, outcome), weight in states.items():
            for draft_weight, ids, laws in drafter(prefix, outcome):
                for probability, k, token in round_outcomes(rule, target, prefix, ids, laws):
                    output = (*prefix, *ids[:k], token)
                    if len(output) < length:
                        longer[output, (k, token)] += weight * draft_weight * probability
                    else:
                        law[output[:length]] += weight * draft_weight * probability
        states = longer
    return law


def largest_error(law, expected):
    return max(abs(law.get(sequence, 0.0) - p) for sequence, p in expected.items())


def sampled_draft(laws, num_draft, *, transform=lambda law: law, report=lambda law: law):
    """A drafter that samples each token from the transformed law, and reports a law for each."""
    transform, report = cache(transform), cache(report)

    def drafter(prefix, outcome):
        pending = [(1.0, (), [])]
        while pending:
            weight, ids, laws_of_ids = pending.pop()
            if len(ids) == num_draft:
                yield weight, ids, laws_of_ids
                continue
            law = law_after(laws, prefix + ids)
            probs = dense_probs(transform(law))
            pending += [
                (weight * probs[token], (*ids, token), [*laws_of_ids, report(transform(law))])
                for token in np.flatnonzero(probs).tolist()
            ]

    return drafter


def greedy_draft(laws, num_draft):
    """A drafter that takes each law's mode: no chance, so no law is reported."""

    def drafter(prefix, outcome):
        ids = ()
        for _ in range(num_draft):
            ids += (int(np.argmax(dense_probs(law_after(laws, prefix + ids)))),)
        yield 1.0, ids, [None] * num_draft

    return drafter


def cached_draft(hit_drafter, miss_drafter, cached_outcomes):
    """SSD: what is drafted depends on whether the last outcome (num_accepted, token) was prepared for."""

    def drafter(prefix, outcome):
        return (hit_drafter if outcome in cached_outcomes else miss_drafter)(prefix, outcome)

    return drafter


def no_draft(prefix, outcome):
    yield 1.0, (), []
