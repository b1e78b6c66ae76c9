"""Constraints: which values are refused, and that what is allowed is what the language allows, forwards and back."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.decoding import LongestMatches

from forerun.core.errors import RequestError
from forerun.engine.constraint import MAX_CHARACTERS, Constraint
from forerun.engine.constraint_grammar import GrammarCompiler

pytest.importorskip("llguidance")

TEXTS = (b"", b"a", b"b", b"c", b"ab", b"bc", b"b", b"")
END, STOP = 0, 3
GRAMMARS = GrammarCompiler(LongestMatches(TEXTS), vocab_size=len(TEXTS))
PATTERNS = ["(a|b)*c?", "(ab|c){1,4}", "a(b|c)*|bb?", "(abc|abb)+"]


def state(pattern, ending_ids=(END,)):
    return GRAMMARS.state(Constraint.regex(pattern), ending_ids=set(ending_ids))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constraint.regex(""), "regex='': must be a text, and not empty"),
        (lambda: Constraint.regex("a" * (MAX_CHARACTERS + 1)), "has 65537 characters; at most 65536"),
        (lambda: Constraint.json_schema("{"), "is not valid JSON"),
        (lambda: Constraint.json_schema("[" * 100_000), "at most 65536"),
        (lambda: Constraint.json_schema("[" * 60_000), "is not valid JSON"),
        (lambda: Constraint.json_schema("3"), "must be a JSON object"),
        (lambda: Constraint.json_schema({"const": {1, 2}}), "can't be written as JSON"),
        (lambda: Constraint.json_schema({"items": {"multipleOf": 12.347}}), "least common multiple"),
        (lambda: Constraint.json_schema({"anyOf": [{"multipleOf": 997}, {"multipleOf": 11}]}), "multipleOf=997|=11"),
        (lambda: Constraint.choice([]), "list of 1 to 1024 texts"),
        (lambda: Constraint.choice(["a", ""]), "none empty"),
        (lambda: Constraint(kind="xml", text="x"), "must be one of json_schema, regex"),
    ],
)  # fmt: skip
def test_bad_values_are_refused(make, message):
    with pytest.raises(RequestError, match=message):
        make()


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint.regex("(a"), r"^regex: does not compile \(.*unclosed group\)"),
        (Constraint.regex("z"), r"allows no first token \(no token of the vocabulary"),
        (Constraint.json_schema({"type": "objct"}), r"Invalid type: objct\); mend or simplify it$"),
        (Constraint.grammar("start: other"), "unknown name"),
    ],
)
def test_what_does_not_compile_is_refused(constraint, message):
    with pytest.raises(RequestError, match=message):
        GRAMMARS.compile(constraint)


def test_nothing_that_ends_the_output_is_refused():
    with pytest.raises(RequestError, match="needs a token that ends the output"):
        GRAMMARS.state(Constraint.regex("a"), ending_ids=())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_allowed_is_what_the_language_allows(pattern):
    """Against Python's regular expressions, for every history of two tokens and less."""
    endings = ["".join(letters) for size in range(7) for letters in itertools.product("abc", repeat=size)]
    language = {text for text in endings if re.fullmatch(pattern, text)}
    beginnings = {text[:size] for text in endings if re.fullmatch(pattern, text) for size in range(len(text) + 1)}
    tracker = state(pattern)
    for history in [(), *itertools.product(range(1, 6)), *itertools.product(range(1, 6), repeat=2)]:
        text = b"".join(TEXTS[token] for token in history).decode()
        if text not in beginnings or len(text) > 2:  # of longer ones not every end is listed
            continue
        tracker.follow(history)
        got = tracker.allowed().tolist()
        assert got[END] == (text in language), text
        # Where only one letter can follow, a token that holds more of what is forced may stand for it.
        letters = {some for some in "abc" if text + some in beginnings}
        firsts = {TEXTS[token][:1].decode() for token in range(1, 7) if got[token]}
        assert firsts == letters, text
        assert all(text + TEXTS[token].decode() in beginnings for token in range(1, 7) if got[token])
        if len(letters) > 1:
            assert [got[token] for token in range(1, 7)] == [
                text + TEXTS[t].decode() in beginnings for t in range(1, 7)
            ]


@settings(max_examples=60)
@given(data=st.data(), pattern=st.sampled_from(PATTERNS))
def test_a_state_that_went_back_and_forth_is_as_a_new_one(data, pattern):
    tracker = state(pattern, (END, STOP))
    for _ in range(data.draw(st.integers(1, 6))):
        history = data.draw(st.lists(st.integers(0, len(TEXTS) - 1), max_size=6))
        tracker.follow(history)
        if data.draw(st.booleans()):
            tracker.allowed()
    new = tracker.fork()
    new.follow(history)
    assert tracker.allowed().tolist() == new.allowed().tolist()


def test_after_the_end_only_an_end_follows_and_after_what_is_forbidden_nothing():
    tracker = state("ab?")
    tracker.follow([1, END])
    assert tracker.allowed().nonzero()[0].tolist() == [END]
    tracker.follow([1, 1])
    assert not tracker.allowed().any()
    tracker.follow([1])
    assert tracker.allowed()[END]


def test_what_was_compiled_is_kept_up_to_a_number():
    compiler = GrammarCompiler(LongestMatches(TEXTS), vocab_size=len(TEXTS))
    for length in range(1, 41):
        compiler.compile(Constraint.regex(f"a{{{length}}}"))
    assert len(compiler._compiled) == 32
