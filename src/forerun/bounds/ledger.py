"""The bits ledger: every cost of a certificate, with the costs that are zero and why."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

_WHY: Final = {
    "architecture": "one of the grid's architectures",
    "projection": "one of the grid's projections",
    "dimension": "one of the grid's subspace dimensions",
    "levels": "one of the grid's numbers of levels",
    "seed": "one of the grid's seeds of start and projection",
    "codebook": "learned magnitudes, 7 bits each",
    "symbols": "quantised coefficients, adaptive code",
}
_FREE: Final = {
    "buffers": "the network has none: no statistics of the data outside the message",
    "scales": "input scale fixed in the grid; other scales are the codebook's",
    "grid": "named by its digest; it must be fixed before the data, which its publisher has to show",
    "bound family": "nested: where the binomial bound holds, all hold",
    "optimiser, steps, restarts": "the bound holds for all messages at once",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerLine:
    """One cost, in bits, and what it is for."""

    name: str
    bits: float
    why: str


def ledger_lines(
    message_bits: Mapping[str, float], *, delta: float, fixed: Mapping[str, str] = MappingProxyType({})
) -> tuple[LedgerLine, ...]:
    """Return all lines: what the verifier read from the message, what is free, and the confidence.

    Args:
        message_bits: Line: bits, as the verifier found them.
        delta: Failure probability.
        fixed: Further lines that are free, or other reasons for the usual ones.
    """
    paid = [LedgerLine(name=name, bits=bits, why=_WHY[name]) for name, bits in message_bits.items()]
    free = [LedgerLine(name=name, bits=0.0, why=why) for name, why in (_FREE | dict(fixed)).items()]
    confidence = LedgerLine(name="confidence", bits=-math.log2(delta), why=f"log2(1/delta), delta = {delta:g}")
    return (*paid, *free, confidence)
