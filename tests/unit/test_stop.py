"""When a request ends: ids, strings, lengths, and what belongs to the output."""

import pytest

from forerun.engine.sampling import SamplingParams
from forerun.engine.stop import OutputTracker

WORDS = {
    0: b"",
    1: b"Hello",
    2: b" wor",
    3: b"ld",
    4: b"!",
    5: b"\xe2\x82",
    6: b"\xac",
    7: b"\xff",
    8: b"stop",
    9: b"STOP!x",
}
EOS = (0,)


def tracker(max_tokens=100, **fields):
    return OutputTracker(SamplingParams(max_tokens=None, **fields), EOS, WORDS.__getitem__, max_tokens=max_tokens)


def run(tokens, **fields):
    step = tracker(**fields).push(tokens)
    return step.num_kept, step.text, step.finish_reason


@pytest.mark.parametrize(
    ("tokens", "fields", "expected"),
    [
        ([1, 2, 3], {}, (3, "Hello world", None)),
        ([1, 0, 2, 3], {}, (2, "Hello", "stop")),
        ([1, 0, 2], {"ignore_eos": True}, (3, "Hello wor", None)),
        ([1, 4, 2], {"stop_token_ids": (4,)}, (2, "Hello", "stop")),
        ([1, 4, 2], {"stop_token_ids": (4,), "ignore_eos": True}, (2, "Hello", "stop")),
        ([1, 2, 3, 4], {"max_tokens": 2}, (2, "Hello wor", "length")),
        # Stop beats length, by id and by string.
        ([1, 0], {"max_tokens": 2}, (2, "Hello", "stop")),
        ([1, 2, 3], {"max_tokens": 3, "stop": ("world",)}, (3, "Hello ", "stop")),
        # A stop string over tokens, inside one, and two at once: the one that ends first counts.
        ([1, 2, 3, 4], {"stop": ("o w",)}, (2, "Hell", "stop")),
        ([1, 9, 4], {"stop": ("!",)}, (2, "HelloSTOP", "stop")),
        ([1, 9, 4], {"stop": ("!x", "TOP", "STOP")}, (2, "Hello", "stop")),
        # A match still open is held back, and comes out when the text ends otherwise.
        ([1, 2], {"stop": ("world",)}, (2, "Hello ", None)),
        ([1, 2], {"stop": ("world",), "max_tokens": 2}, (2, "Hello wor", "length")),
        ([1, 2, 0], {"stop": ("world",)}, (3, "Hello wor", "stop")),
        # UTF-8: a character over tokens, one left open, and bytes that are none.
        ([5], {}, (1, "", None)),
        ([5, 6], {}, (2, "€", None)),
        ([1, 5], {"max_tokens": 2}, (2, "Hello\N{REPLACEMENT CHARACTER}", "length")),
        ([1, 5, 0], {}, (3, "Hello\N{REPLACEMENT CHARACTER}", "stop")),
        ([1, 7, 4], {}, (3, "Hello\N{REPLACEMENT CHARACTER}!", None)),
        # min_tokens: an ending token must follow, a stop string may be completed by the last of them.
        ([1, 0, 2, 0], {"min_tokens": 3}, (4, "Hello wor", "stop")),
        ([8, 1, 8, 1], {"min_tokens": 3, "stop": ("stop",)}, (3, "stopHello", "stop")),
        ([8, 8], {"min_tokens": 2, "stop": ("pst",)}, (2, "sto", "stop")),
    ],
)
def test_what_is_kept(tokens, fields, expected):
    assert run(tokens, **fields) == expected


def test_nothing_is_kept_after_the_end():
    ended = tracker()
    ended.push([1, 0])
    step = ended.push([1, 2])
    assert (step.num_kept, step.text, step.finish_reason) == (0, "", "stop")
    assert ended.num_tokens == 2
    assert ended.end("cancelled").finish_reason == "stop"


def test_cancelling_releases_what_was_held_back():
    held = tracker(stop=("world",))
    assert held.push([1, 2]).text == "Hello "
    step = held.end("cancelled")
    assert (step.num_kept, step.text, step.finish_reason) == (0, "wor", "cancelled")
    assert held.push([3]).num_kept == 0
