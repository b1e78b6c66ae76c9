"""What the engine is to reach on a GPU, and whether the cases of a benchmark do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

FLOOR_SHARE: Final = 0.85
OVER_SEQUENTIAL: Final = 1.2
OVER_AR: Final = 2.5
OVER_TRANSFORMERS: Final = 4.0
AUTO_OVER_BEST: Final = 0.97
NON_VERIFY_SHARES: Final = {1: 0.08, 16: 0.15}
"""Of a step, by batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One thing to be reached.

    Attributes:
        name: What it is.
        wanted: The number.
        is_least: Whether what is found must be at least that; else at most.
        found: What was measured; ``None``: it was not.
        is_met: Whether it is; ``None``: not measured.
    """

    name: str
    wanted: float
    is_least: bool
    found: float | None
    is_met: bool | None

    @classmethod
    def of(cls, name: str, wanted: float, found: float | None, *, is_least: bool = True) -> "Bar":
        """Compare what was found."""
        is_met = None if found is None else (found >= wanted if is_least else found <= wanted)
        return cls(name=name, wanted=wanted, is_least=is_least, found=found, is_met=is_met)

    @property
    def line(self) -> str:
        """Say it in a line."""
        verdict = {True: "met", False: "MISSED", None: "not measured"}[self.is_met]
        found = "" if self.found is None else f": {self.found:.3f}"
        return f"{verdict:<13}{self.name} {'>=' if self.is_least else '<='} {self.wanted:g}{found}"


def reached_bars(cases: Sequence[dict[str, Any]]) -> list[Bar]:
    """Return every bar; those of one batch size at the first context that it was measured with.

    Args:
        cases: Of :func:`forerun.recipes.device_benchmark.device_benchmark`.
    """
    by_place: dict[tuple[str, int], dict[str, Any]] = {}
    for case in cases:
        by_place.setdefault((case["method"], case["batch"]), case)
    ar, ssd, sequential = (by_place.get((method, 1)) for method in ("none", "ssd", "sequential"))
    non_verify = (
        Bar.of(
            f"part of an SSD step at batch {batch} that is not verification",
            most,
            _value(by_place.get(("ssd", batch)), "non_verify_share"),
            is_least=False,
        )
        for batch, most in NON_VERIFY_SHARES.items()
    )
    return [
        Bar.of("AR at batch 1, part of what the bandwidth allows", FLOOR_SHARE, _value(ar, "floor_share")),
        *non_verify,
        Bar.of("SSD over SD at batch 1", OVER_SEQUENTIAL, _ratio(ssd, sequential)),
        Bar.of("SSD over AR at batch 1", OVER_AR, _ratio(ssd, ar)),
        Bar.of("auto over the best method, the worst of all sizes", AUTO_OVER_BEST, _worst_auto(cases)),
        Bar.of("SSD over transformers at batch 1", OVER_TRANSFORMERS, _value(ssd, "over_transformers")),
    ]


def _value(case: dict[str, Any] | None, name: str) -> float | None:
    return None if case is None else case[name]


def _ratio(case: dict[str, Any] | None, other: dict[str, Any] | None) -> float | None:
    if case is None or other is None or not other["tokens_per_s"]:
        return None
    return case["tokens_per_s"] / other["tokens_per_s"]


def _worst_auto(cases: Iterable[dict[str, Any]]) -> float | None:
    """Return the least ratio of auto over the best of all three others, where all were measured."""
    rates: dict[tuple[int, int], dict[str, float]] = {}
    for case in cases:
        rates.setdefault((case["batch"], case["context"]), {})[case["method"]] = case["tokens_per_s"]
    fixed = ("none", "sequential", "ssd")
    ratios = [
        some["auto"] / max(some[method] for method in fixed)
        for some in rates.values()
        if {"auto", *fixed} <= some.keys() and max(some[method] for method in fixed) > 0
    ]
    return min(ratios, default=None)
