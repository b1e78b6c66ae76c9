"""The arithmetic coder: any message under any model comes back, at its ideal length."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.bounds.coding import MAX_TOTAL, ArithmeticDecoder, ArithmeticEncoder
from forerun.core.errors import CertificateError

Tables = list[list[int]]


def encode(message: list[int], tables: Tables) -> bytes:
    encoder = ArithmeticEncoder()
    for symbol, table in zip(message, tables, strict=True):
        encoder.encode(sum(table[:symbol]), table[symbol], sum(table))
    return encoder.finish()


def decode(code: bytes, tables: Tables) -> list[int]:
    decoder, message = ArithmeticDecoder(code), []
    for table in tables:
        position, symbol = decoder.position(sum(table)), 0
        while sum(table[: symbol + 1]) <= position:
            symbol += 1
        decoder.consume(sum(table[:symbol]), table[symbol], sum(table))
        message.append(symbol)
    return message


def ideal_bits(message: list[int], tables: Tables) -> float:
    return sum(math.log2(sum(t) / t[s]) for s, t in zip(message, tables, strict=True))


@st.composite
def coded_messages(draw: st.DrawFn) -> tuple[list[int], Tables]:
    # Unlike laws in one message, from near-certain to 2**-29 likely symbols: what makes carries and long pending runs.
    tables = draw(st.lists(st.lists(st.integers(1, MAX_TOTAL // 8), min_size=1, max_size=8), max_size=40))
    return [draw(st.integers(0, len(table) - 1)) for table in tables], tables


@given(coded_messages())
def test_any_message_returns_at_its_ideal_length(case):
    message, tables = case
    code = encode(message, tables)
    assert decode(code, tables) == message
    assert 8 * len(code) <= 1.001 * ideal_bits(message, tables) + 32


@pytest.mark.parametrize("skew", [1, 2, 1000, 10**6])
def test_long_random_messages_cost_their_information(skew):
    source = random.Random(skew)
    tables = [[1, skew, 1]] * 4000
    message = source.choices(range(3), weights=tables[0], k=4000)
    code, ideal = encode(message, tables), ideal_bits(message, tables)
    assert decode(code, tables) == message
    assert ideal - 8 < 8 * len(code) <= 1.001 * ideal + 32


def test_many_short_messages_return():
    source = random.Random(7)
    for _ in range(3000):
        table = [source.randint(1, 40) for _ in range(source.randint(1, 6))]
        message = [source.randrange(len(table)) for _ in range(source.randint(0, 12))]
        assert decode(encode(message, [table] * len(message)), [table] * len(message)) == message


def test_every_byte_string_is_the_code_of_something():
    # A complete code: no string is wasted, so the probabilities that the bound rests on sum to one.
    source = random.Random(3)
    for _ in range(200):
        tables = [[source.randint(1, 9) for _ in range(5)] for _ in range(10)]
        message = decode(source.randbytes(16), tables)
        assert decode(encode(message, tables), tables) == message


@pytest.mark.parametrize(("start", "frequency", "total"), [(0, 0, 4), (-1, 1, 4), (4, 1, 4), (0, 1, MAX_TOTAL + 1)])
def test_symbol_without_a_part_of_the_interval_is_refused(start, frequency, total):
    with pytest.raises(ValueError, match=f"frequency={frequency}"):
        ArithmeticEncoder().encode(start, frequency, total)


def test_decoder_refuses_a_symbol_that_is_not_there():
    with pytest.raises(CertificateError, match="corrupt"):
        ArithmeticDecoder(encode([1], [[1, 1]])).consume(0, 1, 2)
