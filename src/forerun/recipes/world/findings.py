"""What a study found, for people and for programs: rows of several seeds in one table, health of every run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from forerun.core.errors import ConfigError
from forerun.recipes.world.evaluation import Success, pooled

_FIELDS: Final = {item.name for item in fields(Success)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What a study found.

    Attributes:
        lines: For people.
        numbers: All of them, as JSON types.
    """

    lines: list[str]
    numbers: dict[str, Any]


def first_seeds(num_seeds: int) -> tuple[int, ...]:
    """Return so many seeds, from 0 on.

    Raises:
        ConfigError: There would be none.
    """
    if num_seeds < 1:
        raise ConfigError(f"num_seeds={num_seeds}: must be >= 1")
    return tuple(range(num_seeds))


def successes_of(records: Sequence[Mapping[str, Any]]) -> list[Success]:
    """Return rows from what :meth:`~forerun.recipes.world.evaluation.Success.to_json` wrote."""
    return [Success(**{name: value for name, value in row.items() if name in _FIELDS}) for row in records]


def success_lines(by_seed: Sequence[Sequence[Success]]) -> list[str]:
    """Return a heading and a line for each row of all seeds together, with the count of each seed.

    Args:
        by_seed: Rows of each seed, all with the same names in the same order.
    """
    seeds = f"{len(by_seed)} seed(s), each with tasks of its own (95% intervals over tasks)"
    lines = [f"Success at held-out tasks, {seeds}"]
    for place, row in enumerate(pooled(by_seed)):
        each = ", ".join(str(group[place].num_successes) for group in by_seed)
        lines.append(row.line() + (f"   by seed {each}" if len(by_seed) > 1 else ""))
    return lines


def training_line(name: str, seed: int, result: Mapping[str, Any]) -> str:
    """Return the health of a run on one line.

    Args:
        name: Of the run.
        seed: Of the run.
        result: What :func:`~forerun.worldmodels.jepa.train.train_world` returned.
    """
    health = result["health"]
    return (
        f"{name:<12} seed {seed}  {result['num_steps']} steps  std {health['embedding_std']:.3f}  "
        f"rank {health['effective_rank']:.1f}  gauss {health['gaussianity']:.1f}  probe R² "
        f"{health['mean_probe_r2']:.3f}  {result['cpu_s_since_start']:.0f} CPU-s"
        + (f"  collapsed: {result['why_collapsed']}" if result["why_collapsed"] else "")
    )
