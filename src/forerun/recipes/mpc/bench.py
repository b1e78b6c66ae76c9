"""What a plan costs and what it is worth: ways to plan by latency and return, and which of them nothing beats."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forerun.core.errors import ConfigError, MissingDependencyError
from forerun.data.trajectories import Trajectories
from forerun.planning.statistics import estimate
from forerun.recipes.mpc.contenders import CONTENDERS, Contender, Setting, ssr_way
from forerun.recipes.mpc.evaluate import episodes_of
from forerun.recipes.mpc.package_mppi import PackageMppi
from forerun.recipes.mpc.rate import measure_rate
from forerun.worldmodels.diffusion.train import Report


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """Options of :func:`bench`.

    Attributes:
        samples: Numbers of candidates.
        steps: Denoising steps of proposal and dynamics.
        num_episodes: Of each way, for its return.
        num_plans: Of each way, for its latency.
        seed: Of starts and planning.
    """

    samples: tuple[int, ...] = (16, 64)
    steps: tuple[tuple[int, int], ...] = ((2, 1), (2, 2), (4, 4), (8, 8))
    num_episodes: int = 4
    num_plans: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.samples or not self.steps or min(*self.samples, self.num_episodes, self.num_plans) < 1:
            raise ConfigError(
                f"samples={self.samples}, steps={self.steps}, num_episodes={self.num_episodes}, num_plans="
                f"{self.num_plans}: must name at least one of each, all at least 1"
            )


def bench(
    setting: Setting,
    *,
    config: BenchConfig | None = None,
    report: Report = lambda name, done, total, detail: None,
) -> dict[str, Any]:
    """Measure latency and return of sample-score-rank, of MPPI, and of the package ``pytorch_mppi``.

    Sample-score-rank is there as the models have it, and in several sizes that all begin at pure noise.

    Args:
        setting: Task, models, objective.
        config: Options.
        report: Told of progress.

    Returns:
        Rows with name, return and interval, CPU milliseconds of a plan for one environment, and whether no other way is
        both faster and better; what could not be run, and why. All as JSON types.
    """
    config = config or BenchConfig()
    ways, rows, left_out = _ways(config), [], {}
    seen: Trajectories | None = None
    for place, (name, way) in enumerate(ways.items()):
        try:
            episodes, _, _ = episodes_of(way, setting, num_episodes=config.num_episodes, seed=config.seed)
        except MissingDependencyError as error:
            left_out[name] = str(error)
            continue
        found = estimate([episodes.returns])
        rows.append({"name": name, "summary": way.summary, "return": found.value, "low": found.low, "high": found.high})
        report("bench", place + 1, len(ways), f"{name} {found.value:.3f}")
        seen = seen or episodes
    assert seen is not None
    rates = measure_rate(setting, seen, {row["name"]: ways[row["name"]] for row in rows}, num_plans=config.num_plans)
    for row in rows:
        row["plan_cpu_ms"] = rates[row["name"]]["cpu_ms"]
    for row in rows:
        row["is_unbeaten"] = not any(_beats(other, row) for other in rows)
    rows.sort(key=lambda row: row["plan_cpu_ms"])
    return {
        "task": setting.task.name,
        "num_episodes": config.num_episodes,
        "num_plans": config.num_plans,
        "rows": rows,
        "left_out": left_out,
    }


def _ways(config: BenchConfig) -> dict[str, Contender]:
    ways = {
        f"ssr {count} x {first}/{second}": Contender(
            summary=f"SSR, {count} plans, {first} and {second} denoising steps",
            planner=ssr_way(steps=(first, second), num_samples=count),
        )
        for count in config.samples
        for first, second in config.steps
    }
    ways |= {name: CONTENDERS[name] for name in ("ssr", "proposal", "ssr-one-step", "mppi")}
    ways["pytorch_mppi"] = Contender(summary="MPPI of the package pytorch_mppi, one-step dynamics", planner=PackageMppi)
    return ways


def _beats(other: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Return whether another way is at least as good in both respects and better in one."""
    pairs = [(other["return"], row["return"]), (-other["plan_cpu_ms"], -row["plan_cpu_ms"])]
    return all(theirs >= ours for theirs, ours in pairs) and any(theirs > ours for theirs, ours in pairs)
