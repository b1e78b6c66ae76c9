"""The numbers to reach, each with what was measured: met, missed, or not measured."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

_FIXED_METHODS = ("ar", "sd", "ssd", "ar-2", "sd-2")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One number to reach.

    Attributes:
        name: What is measured.
        required: The bound.
        direction: Whether the value must be at least or at most the bound.
        value: What was measured; ``None``: not measured.
        note: What else a reader should know.
    """

    name: str
    required: float
    direction: Literal["at least", "at most"]
    value: float | None
    note: str = ""

    @property
    def verdict(self) -> Literal["met", "missed", "not measured"]:
        """Whether the bar is reached."""
        if self.value is None:
            return "not measured"
        is_met = self.value >= self.required if self.direction == "at least" else self.value <= self.required
        return "met" if is_met else "missed"

    def as_dict(self) -> dict[str, Any]:
        """Return the bar as plain JSON types, with its verdict."""
        return asdict(self) | {"verdict": self.verdict}


def bars(summary: Mapping[str, Any]) -> list[Bar]:
    """Compare a summary with the numbers to reach.

    Args:
        summary: From :func:`forerun.recipes.decode_benchmark.summary.summarise`.
    """
    greedy, sampled = summary["greedy"], summary["sampled"]
    best = greedy["best_on_two_cores"]
    identical = summary["identical_outputs"]["greedy"]
    compared = identical["num_compared"]
    return [
        _ratio_bar(greedy, "ssd / sd", 1.35, "SSD (1 + 1 cores) over SD (1 core), greedy"),
        _ratio_bar(greedy, "ssd / ar", 1.8, "SSD (1 + 1 cores) over AR (1 core), greedy", aim="aim: 2.2"),
        _rate_bar(greedy, "cache_hit_rate", 0.85, "Outcome predicted (cache hits), greedy"),
        _rate_bar(sampled, "cache_hit_rate", 0.75, "Outcome predicted (cache hits), temperature 0.7"),
        _rate_bar(greedy, "mean_acceptance_length", 2.8, "Mean acceptance length of SSD, greedy"),
        _rate_bar(
            greedy, "non_verify_share_hit", 0.08, "Share of a hit step not spent verifying, greedy", at_most=True
        ),
        _ratio_bar(greedy, "ar / llama.cpp-1", 0.8, "AR (1 core) over llama.cpp (1 thread), greedy"),
        _ratio_bar(
            greedy,
            f"{best} / llama.cpp-2",
            1.3,
            "Best method on 2 cores over llama.cpp (2 threads), greedy",
            aim=f"best: {best}",
        ),
        _auto_bar(greedy),
        Bar(
            name="Greedy outputs identical over our methods, share of prompts",
            required=1.0,
            direction="at least",
            value=identical["num_identical"] / compared if compared else None,
            note=f"{identical['num_identical']} of {compared} prompts",
        ),
        _memory_bar(summary["memory"]),
        _start_bar(summary["start_s"]),
    ]


def _ratio_bar(results: Mapping[str, Any], pair: str, required: float, name: str, *, aim: str = "") -> Bar:
    ratio = results["speedups"].get(pair)
    interval = (
        f"95% interval {ratio['low']:.2f} to {ratio['high']:.2f}, {ratio['num_prompts']} prompts" if ratio else ""
    )
    note = "; ".join(filter(None, (interval, aim)))
    return Bar(name=name, required=required, direction="at least", value=ratio["value"] if ratio else None, note=note)


def _rate_bar(results: Mapping[str, Any], field: str, required: float, name: str, *, at_most: bool = False) -> Bar:
    engine = results["engines"].get("ssd", {})
    return Bar(name=name, required=required, direction="at most" if at_most else "at least", value=engine.get(field))


def _auto_bar(results: Mapping[str, Any]) -> Bar:
    """Compare ``auto`` with the fastest method a user could have fixed, on one core or two."""
    engines = results["engines"]
    best = max(
        (name for name in _FIXED_METHODS if name in engines), key=lambda n: engines[n]["tokens_per_s"], default=None
    )
    return _ratio_bar(
        results,
        f"auto / {best}",
        0.95,
        "auto over the best fixed method, greedy",
        aim=f"best fixed: {best}" if best else "",
    )


def _memory_bar(memory: Mapping[str, Any]) -> Bar:
    """Take the process that is closest to its limit, or furthest above it."""
    shares = {
        f"{role} of {engine}": (process["peak_bytes"] / process["limit_bytes"], process)
        for engine, roles in memory.items()
        for role, process in roles.items()
        if process["limit_bytes"] and engine in {*_FIXED_METHODS, "auto"}
    }
    worst = max(shares, key=lambda name: shares[name][0], default=None)
    if worst is None:
        note, value = "", None
    else:
        value, process = shares[worst]
        note = f"{worst}: peak {process['peak_bytes'] / 1e6:.0f} MB of {process['limit_bytes'] / 1e6:.0f} MB"
    return Bar(
        name="Peak resident memory over 1.5 x files + 600 MB, worst process",
        required=1.0,
        direction="at most",
        value=value,
        note=note,
    )


def _start_bar(starts: Mapping[str, Any]) -> Bar:
    worst = max(starts, key=lambda name: starts[name]["median"], default=None)
    return Bar(
        name="Start to first token, files warm, seconds",
        required=8.0,
        direction="at most",
        value=starts[worst]["median"] if worst else None,
        note=f"slowest: {worst}" if worst else "",
    )
