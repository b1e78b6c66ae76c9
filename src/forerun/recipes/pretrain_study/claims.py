"""Statements of the paper, and what a study says about each: a number, its interval, a verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forerun.pretraining.laws import Interval, interval_json, interval_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A statement of the paper, and what this study found.

    Attributes:
        statement: In words, true if the number is on the right side.
        paper: The paper's number.
        found: Ours; ``None`` if there is none.
        unit: Of the number.
        verdict: ``holds`` or ``does not hold`` where the whole interval says so, else ``open``.
        note: What the number leaves out.
    """

    statement: str
    paper: str
    found: dict[str, Any] | None
    unit: str
    verdict: str
    note: str = ""


Side = Callable[[float], bool]
"""Whether a value is where a statement says."""


def above(least: float) -> Side:
    """Return the side of values that are at least so much."""
    return lambda value: value >= least


def more_than(bound: float) -> Side:
    """Return the side of values that are more than so much."""
    return lambda value: value > bound


def below(most: float) -> Side:
    """Return the side of values that are less than so much."""
    return lambda value: value < most


def not_identified(statement: str, paper: str, problems: Sequence[str], unit: str) -> Claim:
    """Return a claim on which there is no number."""
    note = f"not identified: {'; '.join(problems)}"
    return Claim(statement=statement, paper=paper, found=None, unit=unit, verdict="open", note=note)


def claim_of(statement: str, paper: str, values: np.ndarray, unit: str, side: Side, *, note: str = "") -> Claim:
    """Judge a statement by an estimate and its replicates."""
    return claim_about(statement, paper, interval_of(values), unit, side, note=note)


def claim_about(statement: str, paper: str, interval: Interval, unit: str, side: Side, *, note: str = "") -> Claim:
    """Judge a statement by an interval."""
    return Claim(
        statement=statement,
        paper=paper,
        found=interval_json(interval),
        unit=unit,
        verdict=verdict_of(interval, side),
        note=note,
    )


def verdict_of(interval: Interval, side: Side) -> str:
    """Return what a whole interval says about which side it is on."""
    ends: Sequence[bool] = (side(interval.low), side(interval.high))
    return "open" if ends[0] != ends[1] else "holds" if ends[0] else "does not hold"
