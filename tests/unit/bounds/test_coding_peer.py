"""The coder beside the range coder of `constriction`: the same intervals cost both as much."""

import math
import random

import numpy as np
import pytest

from forerun.bounds import message as message_module
from forerun.bounds.coding import ArithmeticEncoder
from forerun.bounds.message import NUM_COUNT_TABLES, Message, count_tables, encode_message
from forerun.bounds.prior import PriorGrid

constriction = pytest.importorskip("constriction")

# The peer has 24 bits for a probability and 32-bit words: up to two words of slack, and rounding on each symbol.
SLACK_BITS, RELATIVE = 64, 1e-3


def peer_code(intervals: list[tuple[int, int, int]]) -> int:
    """Code "before, within, after" of each interval with the peer, check that they return, and give its bits."""
    encoder, models = constriction.stream.queue.RangeEncoder(), []
    for start, frequency, total in intervals:
        parts = [part for part in (start, frequency, total - start - frequency) if part]
        if len(parts) > 1:
            model = constriction.stream.model.Categorical(np.array(parts) / total, perfect=True)
            models.append((model, int(start > 0)))
    for model, symbol in models:
        encoder.encode(symbol, model)
    decoder = constriction.stream.queue.RangeDecoder(encoder.get_compressed())
    assert [int(decoder.decode(model)) for model, _ in models] == [symbol for _, symbol in models]
    return encoder.num_bits()


class RecordingEncoder(ArithmeticEncoder):
    """Keeps the intervals that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.intervals: list[tuple[int, int, int]] = []

    def encode(self, start: int, frequency: int, total: int) -> None:
        super().encode(start, frequency, total)
        self.intervals.append((start, frequency, total))


@pytest.mark.parametrize("share_of_zeros", [0.0, 0.5, 0.95])
def test_a_certificates_message_is_as_long_by_another_coder(share_of_zeros, monkeypatch):
    grid = PriorGrid(
        input_shape=(1, 8, 1), num_classes=2, input_scale=1.0, architectures=((),), subspace_dims=(2000,), levels=(7,)
    )
    source = random.Random(5)
    symbols = tuple(0 if source.random() < share_of_zeros else source.randint(-3, 3) for _ in range(2000))
    message = Message(architecture=(), levels=7, seed=grid.seeds[0], magnitude_steps=(40, 64, 80), symbols=symbols)
    encoder = RecordingEncoder()
    monkeypatch.setattr(message_module, "ArithmeticEncoder", lambda: encoder)
    code, intervals = encode_message(message, grid), encoder.intervals
    bits = peer_code(intervals)
    assert abs(8 * len(code) - bits) <= SLACK_BITS + RELATIVE * bits

    # The law of the symbols, made again from its definition: Krichevsky-Trofimov on magnitudes, fair signs.
    seen = [[0.5] * 4 for _ in range(NUM_COUNT_TABLES)]
    nats = 0.0
    for symbol, table in zip(symbols, count_tables(grid, (), 2000), strict=True):
        nats -= math.log(seen[table][abs(symbol)] / sum(seen[table])) - (math.log(2) if symbol else 0)
        seen[table][abs(symbol)] += 1
    head = len(intervals) - len(symbols) - sum(1 for symbol in symbols if symbol)
    ideal = nats / math.log(2) + sum(math.log2(total / part) for _, part, total in intervals[:head])
    assert -8 < 8 * len(code) - ideal <= 32


@pytest.mark.parametrize("skew", [1, 50, 4000])
def test_laws_of_many_shapes_cost_as_much_by_another_coder(skew):
    source, encoder, intervals = random.Random(skew), ArithmeticEncoder(), []
    for _ in range(3000):
        table = [source.randint(1, skew) for _ in range(5)]
        symbol = source.choices(range(5), weights=table)[0]
        intervals.append((sum(table[:symbol]), table[symbol], sum(table)))
        encoder.encode(*intervals[-1])
    bits = peer_code(intervals)
    assert abs(8 * len(encoder.finish()) - bits) <= SLACK_BITS + RELATIVE * bits
