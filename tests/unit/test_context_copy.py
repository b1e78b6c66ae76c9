"""Guesses copied from the context: what followed the longest, latest match, and how often such guesses were right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.engine.law import ProcessedLaw
from forerun.engine.speculative.context_copy import ContextCopy, mixed_law


def test_no_guess_without_a_match_of_three():
    copy = ContextCopy([1, 2, 3, 4, 5])
    assert copy.guess([9, 2, 3]) is None
    assert copy.guess([2, 3]) is None
    assert copy.guess([]) is None


def test_the_latest_occurrence_is_copied_and_the_end_itself_is_none():
    copy = ContextCopy([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3])
    token, chance = copy.guess([1, 2, 3])
    assert token == 8
    assert 0 < chance < 1


def test_a_longer_match_beats_a_later_one():
    copy = ContextCopy([1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 8])
    assert copy.guess([1, 2, 3, 4, 5, 6])[0] == 7
    assert copy.guess([9, 9, 9, 4, 5, 6])[0] == 8


def test_hypothetical_tokens_are_context_but_no_source():
    copy = ContextCopy([1, 2, 3, 4])
    assert copy.guess([5, 6, 7]) is None
    copy.commit([5, 6, 7, 9])
    assert copy.guess([5, 6, 7])[0] == 9


@given(st.lists(st.integers(0, 3), min_size=4, max_size=40), st.integers(1, 10))
def test_guesses_match_a_search_of_the_whole_context(tokens, size):
    copy = ContextCopy(tokens[:2])
    copy.commit(tokens[2:])
    recent = tokens[-size:]
    expected = None
    for length in (6, 3):
        places = [i for i in range(length, len(tokens)) if tokens[i - length : i] == recent[-length:]]
        if len(recent) >= length and places:
            expected = tokens[places[-1]]
            break
    found = copy.guess(recent)
    assert (found and found[0]) == expected


def test_chances_follow_what_was_seen():
    right, wrong = ContextCopy([1, 2, 3, 4]), ContextCopy([1, 2, 3, 4])
    before = right.guess([1, 2, 3])[1]
    for other in range(100, 120):
        right.commit([other, 1, 2, 3, 4])
        wrong.commit([other, 1, 2, 3, other])
    assert right.guess([1, 2, 3])[1] > before
    assert wrong.guess([1, 2, 3])[1] < before


@pytest.mark.parametrize("token", [0, 2, 5, 9])
@pytest.mark.parametrize("ids", [None, np.array([1, 2, 7], np.int64)])
def test_a_mixed_law_is_the_mixture(token, ids):
    law = ProcessedLaw(vocab_size=10, ids=ids, scores=np.log(np.arange(1.0, 11.0 if ids is None else 4.0)))
    mixed = mixed_law(law, token, weight=0.25)
    expected = 0.75 * law.dense_probs()
    expected[token] += 0.25
    assert mixed.dense_probs() == pytest.approx(expected, abs=1e-15)
    assert mixed.ids is None or np.all(np.diff(mixed.ids) > 0)
