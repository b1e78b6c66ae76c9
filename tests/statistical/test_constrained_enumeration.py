"""The exact law of constrained output, drafted and verified, is that of decoding by a model with masked laws.

The vocabulary is small enough to say by hand which tokens a language allows, so neither the grammar nor the engine's
masks are their own judge. Every draft, decision and replacement is summed over (``simulated.enumeration``).
"""

import itertools
import re
from functools import cache

import numpy as np
import pytest
from simulated.decoding import LongestMatches
from simulated.enumeration import (
    cached_draft,
    enumerated_output_law,
    greedy_draft,
    largest_error,
    no_draft,
    sampled_draft,
    target_output_law,
)
from simulated.models import markov_law

from forerun.engine.constraint import Constraint
from forerun.engine.constraint_grammar import GrammarCompiler
from forerun.engine.law import ProcessedLaw
from forerun.engine.logits import LogitsProcessor
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.rejection import saguaro_rescale

pytest.importorskip("llguidance")

TOLERANCE = 1e-12
TEXTS = (b"a", b"b", b"ab", b"")
END = 3
VOCAB_SIZE = len(TEXTS)
PATTERN = "(ab|b)*a?|aaa"
LENGTH = 4
ROWS = {name: markov_law(VOCAB_SIZE, seed=seed) for name, seed in (("target", 1), ("draft", 2))}
GRAMMARS = GrammarCompiler(LongestMatches(TEXTS), vocab_size=VOCAB_SIZE)
CONSTRAINT = Constraint.regex(PATTERN)


def processed(name, *, constraint, temperature=1.0, candidate_ids=None):
    """The law after each output, as the engine processes it; the same object for the same output."""
    params = SamplingParams(temperature=temperature, constraint=constraint)
    state = None if constraint is None else GRAMMARS.state(constraint, ending_ids={END})
    ids = None if candidate_ids is None else np.array(candidate_ids)
    processor = LogitsProcessor(params, [0], (END,), VOCAB_SIZE, candidate_ids=ids, constraint=state)

    @cache
    def law(prefix):
        row = ROWS[name]((0, *prefix))
        return processor.process(row if ids is None else row[ids], list(prefix))

    return law


@cache
def is_beginning(text):
    """Whether the language holds a text that begins so (three more letters are enough for any)."""
    tails = ("".join(letters) for size in range(4) for letters in itertools.product("ab", repeat=size))
    return any(re.fullmatch(PATTERN, text + tail) for tail in tails)


@cache
def allowed_by_hand(prefix):
    """The tokens that the language allows; all of them where it has been left, which the right target never does."""
    allowed = np.zeros(VOCAB_SIZE, bool)
    if END in prefix:
        allowed[END] = True
    else:
        text = b"".join(TEXTS[token] for token in prefix).decode()
        allowed[:END] = [is_beginning(text + some.decode()) for some in TEXTS[:END]]
        allowed[END] = re.fullmatch(PATTERN, text) is not None
    return allowed if allowed.any() else ~allowed


@cache
def law_by_hand(prefix):
    """The target's law with the tokens that the language does not allow taken out."""
    weights = np.where(allowed_by_hand(prefix), np.exp(ROWS["target"]((0, *prefix)).astype(np.float64)), 0.0)
    return ProcessedLaw.from_probs(weights / weights.sum(), vocab_size=VOCAB_SIZE)


MASKED = processed("draft", constraint=CONSTRAINT)
UNMASKED = processed("draft", constraint=None)
PREPARED = {(k, token) for k in range(3) for token in (0, 2)}
DRAFTERS = {
    "no draft": no_draft,
    "draft within the constraint": sampled_draft(MASKED, 2),
    "draft that does not know it": sampled_draft(UNMASKED, 2),
    "draft at its own temperature": sampled_draft(processed("draft", constraint=CONSTRAINT, temperature=0.5), 2),
    "greedy draft": greedy_draft(MASKED, 2),
    "Saguaro": sampled_draft(MASKED, 2, transform=lambda law: saguaro_rescale(law, fan_out=1, c=0.3)),
    "hits, and misses with a greedy fallback": cached_draft(
        sampled_draft(MASKED, 2), greedy_draft(MASKED, 1), PREPARED
    ),
    "hits, and misses whose fallback does not know it": cached_draft(
        sampled_draft(MASKED, 2), sampled_draft(UNMASKED, 1), PREPARED
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_law_is_the_masked_law(name):
    target = processed("target", constraint=CONSTRAINT)
    law = enumerated_output_law(DRAFTERS[name], LENGTH, target=target)
    assert sum(law.values()) == pytest.approx(1, abs=TOLERANCE)
    assert largest_error(law, target_output_law(target, LENGTH)) < TOLERANCE
    # The engine's laws are float32 weights.
    assert largest_error(law, target_output_law(law_by_hand, LENGTH)) < 1e-6


def test_a_draft_never_leaves_the_language():
    prefixes = [()]
    for prefix in prefixes:
        possible = np.flatnonzero(law_by_hand(prefix).dense_probs()).tolist()
        assert np.flatnonzero(MASKED(prefix).dense_probs()).tolist() == possible
        prefixes += [(*prefix, token) for token in possible if len(prefix) < 3]


# Negative controls.


class StaleMask:
    """A target whose grammar is not moved on within a draft: each round masks by where it began."""

    def __init__(self, drafter):
        self._drafter, self._begin = drafter, ()

    def drafter(self, prefix, outcome):
        for some in self._drafter(prefix, outcome):
            self._begin = prefix
            yield some

    def law(self, prefix):
        weights = np.where(
            allowed_by_hand(prefix[: len(self._begin)]), np.exp(ROWS["target"]((0, *prefix)).astype(np.float64)), 0.0
        )
        return ProcessedLaw.from_probs(weights / weights.sum(), vocab_size=VOCAB_SIZE)


def test_a_mask_that_stays_where_the_round_began_is_caught():
    stale = StaleMask(sampled_draft(UNMASKED, 2))
    law = enumerated_output_law(stale.drafter, LENGTH, target=stale.law)
    assert largest_error(law, target_output_law(law_by_hand, LENGTH)) > 1e-3


def test_a_draft_that_reports_the_law_before_its_mask_is_caught():
    def lying(prefix, outcome):
        for weight, ids, _ in sampled_draft(MASKED, 2)(prefix, outcome):
            yield weight, ids, [UNMASKED(prefix + ids[:i]) for i in range(2)]

    law = enumerated_output_law(lying, LENGTH, target=law_by_hand)
    assert largest_error(law, target_output_law(law_by_hand, LENGTH)) > 1e-3


def test_an_unmasked_target_is_caught():
    law = enumerated_output_law(sampled_draft(UNMASKED, 2), LENGTH, target=processed("target", constraint=None))
    assert largest_error(law, target_output_law(law_by_hand, LENGTH)) > 1e-3
