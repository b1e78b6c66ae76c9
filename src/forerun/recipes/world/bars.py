"""What studies are to reach, and whether they did."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from forerun.recipes.world.evaluation import Success

_STD: Final = (0.9, 1.1)
_LEAST_RANK: Final = 12.0
_LEAST_R2: Final = 0.97
_LEAST_SUCCESS: Final = {"near": 0.93, "opposite": 0.60}
_RATE_TOLERANCE: Final = 0.2
_LEAST_AUROC: Final = {"teleport": 0.99, "dynamics": 0.9}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One number to reach.

    Attributes:
        name: What is measured.
        wanted: In words.
        found: In words; of several models the worst, unless it says otherwise.
        is_met: Whether it was reached.
    """

    name: str
    wanted: str
    found: str
    is_met: bool

    def line(self) -> str:
        """Return it on one line."""
        return f"{'met   ' if self.is_met else 'missed'}  {self.name:<44} {self.found:<30} wanted {self.wanted}"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


def health_bars(healths: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Return the bars of embeddings.

    Args:
        healths: Of each model, as the monitor's JSON.
    """
    stds = [float(health["embedding_std"]) for health in healths]
    rank = min(float(health["effective_rank"]) for health in healths)
    r_squared = [float(health["mean_probe_r2"]) for health in healths]
    return [
        Bar(
            name="std of embeddings",
            wanted=f"{_STD[0]} to {_STD[1]}",
            found=f"{min(stds):.3f} to {max(stds):.3f}",
            is_met=_STD[0] <= min(stds) and max(stds) <= _STD[1],
        ),
        Bar(name="effective rank", wanted=f">= {_LEAST_RANK:g}", found=f"{rank:.1f}", is_met=rank >= _LEAST_RANK),
        r_squared_bar("position, linear probe", r_squared, _LEAST_R2),
    ]


def success_bars(rows: Sequence[Success], *, model: str, control: str) -> list[Bar]:
    """Return the bars of planning: the best way to plan counts in each protocol, and so does the control's best.

    Args:
        rows: Of all models together.
        model: What names of the model's rows begin with.
        control: What those of the collapsed control begin with.
    """
    bars: list[Bar] = []
    for protocol, least in _LEAST_SUCCESS.items():
        best = best_row(rows, protocol, model)
        bars += [least_success_bar(best, least), above_bar(best, best_row(rows, protocol, control))]
    return bars


def best_row(rows: Sequence[Success], protocol: str, name: str) -> Success:
    """Return the row of a protocol with the highest rate, of those whose names begin so."""
    named = [row for row in rows if row.protocol == protocol and row.name.startswith(name)]
    return max(named, key=lambda row: row.rate)


def least_success_bar(row: Success, least: float) -> Bar:
    """Return whether a rate is high enough."""
    return Bar(
        name=f"success, {row.protocol} ({row.name})",
        wanted=f">= {least:.0%}",
        found=f"{row.rate:.1%}",
        is_met=row.rate >= least,
    )


def above_bar(row: Success, floor: Success) -> Bar:
    """Return whether the whole interval of one rate is above that of another."""
    low, high = row.interval[0], floor.interval[1]
    return Bar(
        name=f"success, {row.protocol}, above {floor.name}",
        wanted="intervals apart",
        found=f"{low:.1%} over {high:.1%}",
        is_met=low > high,
    )


def r_squared_bar(name: str, values: Sequence[float], least: float) -> Bar:
    """Return whether the least of some R² is high enough."""
    worst = min(values)
    return Bar(name=f"R² of {name}", wanted=f">= {least}", found=f"{worst:.3f}", is_met=worst >= least)


def surprise_bars(results: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Return the bars of surprise.

    Args:
        results: Of each model, as the benchmark's JSON.
    """
    off = max((float(result["false_alarms"]["rate"] / result["wanted_rate"]) - 1 for result in results), key=abs)
    bars = [
        Bar(
            name="false alarms, off the rate asked for by",
            wanted=f"within {_RATE_TOLERANCE:.0%}",
            found=f"{off:+.1%}",
            is_met=abs(off) <= _RATE_TOLERANCE,
        )
    ]
    for event, least in _LEAST_AUROC.items():
        worst = min(float(result["events"][event]["auroc"]) for result in results)
        bars.append(Bar(name=f"AUROC, {event}", wanted=f">= {least}", found=f"{worst:.4f}", is_met=worst >= least))
    return bars
