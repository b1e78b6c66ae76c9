"""Streaming text: any cut into rounds, and any cut of the bytes into tokens, gives the text of one shot."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from forerun.engine.detokenizer import IncrementalDetokenizer
from forerun.engine.sampling import SamplingParams
from forerun.engine.stop import OutputTracker

ALPHABET = "ab€😀"
stops = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3).map(tuple)


def cut(draw, items):
    """Cut a sequence into pieces, some of them empty."""
    ends = sorted(draw(st.lists(st.integers(0, len(items)), max_size=6)))
    return [items[start:end] for start, end in zip([0, *ends], [*ends, len(items)], strict=True)]


@st.composite
def token_tables(draw):
    return draw(st.lists(st.binary(max_size=3) | st.text(ALPHABET, max_size=3).map(str.encode), min_size=1, max_size=9))


@st.composite
def outputs(draw):
    table = draw(token_tables())
    tokens = draw(st.lists(st.integers(0, len(table) - 1), max_size=15))
    params = SamplingParams(
        stop=draw(stops),
        stop_token_ids=tuple(draw(st.lists(st.integers(0, len(table) - 1), max_size=1))),
        min_tokens=draw(st.integers(0, 4)),
        max_tokens=None,
    )
    return table, tokens, params, draw(st.integers(5, 20)), cut(draw, tokens)


def stream(table, rounds, params, max_tokens):
    tracker = OutputTracker(params, (), table.__getitem__, max_tokens=max_tokens)
    steps = [tracker.push(tokens) for tokens in rounds]
    num_kept = sum(step.num_kept for step in steps)
    assert num_kept == tracker.num_tokens
    text = "".join(step.text for step in steps)
    finish_reason = tracker.finish_reason
    return num_kept, text + tracker.end("cancelled").text, finish_reason, text


@settings(max_examples=500, deadline=None)
@given(outputs())
def test_rounds_do_not_matter(case):
    table, tokens, params, max_tokens, rounds = case
    assert stream(table, rounds, params, max_tokens) == stream(table, [tokens], params, max_tokens)


def plain_output(table, tokens, params, max_tokens):
    """The end and the text, from the whole text decoded again after each token."""
    for count in range(1, len(tokens) + 1):
        data = b"".join(table[t] for t in tokens[:count])
        if tokens[count - 1] in params.stop_token_ids and count > params.min_tokens:
            before = b"".join(table[t] for t in tokens[: count - 1])
            return count, before.decode("utf-8", errors="replace"), "stop"
        text = complete_text(data)
        known = complete_text(b"".join(table[t] for t in tokens[: count - 1]))
        if count >= params.min_tokens:
            matches = [
                (start + len(stop), start)
                for stop in params.stop
                for start in range(len(text))
                if text.startswith(stop, start) and start + len(stop) > len(known)
            ]
            if matches:
                return count, text[: min(matches)[1]], "stop"
        if count == max_tokens:
            return count, data.decode("utf-8", errors="replace"), "length"
    return len(tokens), b"".join(table[t] for t in tokens).decode("utf-8", errors="replace"), None


def complete_text(data):
    """The text of the bytes without a character that more bytes could complete."""
    for size in range(min(3, len(data)), 0, -1):
        tail = data[-size:]
        try:
            tail.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data" and error.start == 0:
                return data[:-size].decode("utf-8", errors="replace")
    return data.decode("utf-8", errors="replace")


@settings(max_examples=500, deadline=None)
@given(outputs())
def test_against_decoding_everything_again(case):
    table, tokens, params, max_tokens, rounds = case
    num_kept, text, finish_reason, _ = stream(table, rounds, params, max_tokens)
    assert (num_kept, text, finish_reason) == plain_output(table, tokens, params, max_tokens)


@settings(max_examples=300, deadline=None)
@given(outputs())
def test_shown_text_is_never_taken_back(case):
    table, _, params, max_tokens, rounds = case
    final = stream(table, rounds, params, max_tokens)[1]
    for end in range(len(rounds) + 1):
        shown = stream(table, rounds[:end], params, max_tokens)[3]
        assert final.startswith(shown)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=24) | st.text(max_size=10).map(str.encode), st.data())
@example("€".encode()[:2] + b"\xff", None)
def test_bytes_in_any_pieces_decode_as_in_one(data, drawn):
    pieces = cut(drawn.draw, data) if drawn is not None else [data[i : i + 1] for i in range(len(data))]
    detokenizer = IncrementalDetokenizer(pieces.__getitem__)
    text = "".join(detokenizer.push(i) for i in range(len(pieces))) + detokenizer.finish()
    assert text == data.decode("utf-8", errors="replace")
