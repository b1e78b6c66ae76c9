"""A classifier as a message: the choices from the grid, the codebook and the symbols, in the normative code.

Magnitude classes are coded adaptively (Krichevsky-Trofimov: half a count for each class to begin with; behind cells
with a table of counts for each part of the spectrum), signs as fair coins. Every message of a grid has a probability
of its own and these sum to at most one: what the bound needs. Nothing is added for the lengths of the parts, as the
decoder knows them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from forerun.bounds import verifier
from forerun.bounds.coding import ArithmeticDecoder, ArithmeticEncoder
from forerun.bounds.prior import Architecture, PriorGrid
from forerun.bounds.verifier import MAGNITUDE_BITS

NUM_COUNT_TABLES: Final = 7
"""One for biases, or for all where there are no cells; six for the parts of a spectrum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodedPoint:
    """A point of a subspace in few levels.

    Attributes:
        magnitude_steps: m steps of the logarithmic scale, 0 to 127.
        symbols: One for each dimension: 0, or +-j for the j-th magnitude.
    """

    magnitude_steps: tuple[int, ...]
    symbols: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Message(CodedPoint):
    """All that distinguishes one classifier from the others of its grid; see :class:`CodedPoint` for the rest.

    Attributes:
        architecture: Layers.
        levels: Quantisation levels, 2 m + 1.
        seed: Of start and projection.
    """

    architecture: Architecture
    levels: int
    seed: int


def num_magnitude_steps() -> int:
    """Return how many magnitudes there are to choose from."""
    return 1 << MAGNITUDE_BITS


def step_to_magnitude(step: int) -> float:
    """Return 2**((step - 64) / 8): 1/256 to 235, each 9% above the last."""
    return 2.0 ** ((step - 64) / 8)


def encode_message(message: Message, grid: PriorGrid) -> bytes:
    """Return the code of a message.

    Raises:
        ValueError: The message is none of this grid.
    """
    choices = (
        (message.architecture, grid.architectures),
        (len(message.symbols), grid.subspace_dims),
        (message.levels, grid.levels),
        (message.seed, grid.seeds),
    )
    return encode_point(message, choices, count_tables(grid, message.architecture, len(message.symbols)))


def encode_point(point: CodedPoint, choices: Sequence[tuple[Any, Sequence[Any]]], tables: Sequence[int]) -> bytes:
    """Return the code of choices, codebook and symbols.

    Args:
        point: Codebook and symbols.
        choices: What was chosen, and from which options; uniform.
        tables: Which table of counts codes each symbol.

    Raises:
        ValueError: A choice is none of its options.
    """
    encoder = ArithmeticEncoder()
    for value, options in choices:
        encoder.encode(options.index(value), 1, len(options))
    for step in point.magnitude_steps:
        encoder.encode(step, 1, num_magnitude_steps())
    counts = _no_counts(2 * len(point.magnitude_steps) + 1)
    for symbol, table in zip(point.symbols, tables, strict=True):
        start, frequency, total = _interval(counts[table], abs(symbol))
        encoder.encode(start, frequency, total)
        counts[table][abs(symbol)] += 1
        if symbol:
            encoder.encode(int(symbol > 0), 1, 2)
    return encoder.finish()


def decode_message(code: bytes, grid: PriorGrid) -> Message:
    """Return the message of a code.

    Raises:
        CertificateError: The code is corrupt.
    """
    decoder = ArithmeticDecoder(code)

    def uniform(count: int) -> int:
        position = decoder.position(count)
        decoder.consume(position, 1, count)
        return position

    architecture = grid.architectures[uniform(len(grid.architectures))]
    dim = grid.subspace_dims[uniform(len(grid.subspace_dims))]
    levels = grid.levels[uniform(len(grid.levels))]
    seed = grid.seeds[uniform(len(grid.seeds))]
    all_counts = _no_counts(levels)
    steps = tuple(uniform(num_magnitude_steps()) for _ in all_counts[0][1:])
    symbols: list[int] = []
    for table in count_tables(grid, architecture, dim):
        counts = all_counts[table]
        position = decoder.position(sum(2 * count + 1 for count in counts))
        magnitude = 0
        while sum(_interval(counts, magnitude)[:2]) <= position:
            magnitude += 1
        decoder.consume(*_interval(counts, magnitude))
        counts[magnitude] += 1
        symbols.append(magnitude if not magnitude or uniform(2) else -magnitude)
    return Message(architecture=architecture, levels=levels, seed=seed, magnitude_steps=steps, symbols=tuple(symbols))


def count_tables(grid: PriorGrid, architecture: Architecture, dim: int) -> list[int]:
    """Return for each symbol which of :data:`NUM_COUNT_TABLES` tables of counts it is coded with.

    Raises:
        ValueError: The architecture can't have so many coefficients.
    """
    choices = {"architectures": [layer.as_json() for layer in architecture], "subspace_dims": dim}
    return verifier.count_tables(choices, grid.as_json())


def _no_counts(levels: int) -> list[list[int]]:
    return [[0] * ((levels + 1) // 2) for _ in range(NUM_COUNT_TABLES)]


def _interval(counts: Sequence[int], symbol: int) -> tuple[int, int, int]:
    """Return (start, frequency, total) of a magnitude class under the Krichevsky-Trofimov estimator."""
    frequencies = [2 * count + 1 for count in counts]
    return sum(frequencies[:symbol]), frequencies[symbol], sum(frequencies)
