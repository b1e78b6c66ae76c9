"""How well a world model serves planning: success on held-out tasks, between floors and ceiling."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from forerun.data.pixel_episodes import PixelEpisodes
from forerun.data.pixel_shards import PixelDataset
from forerun.recipes.world.agents import Agent, PlanningAgent, RandomAgent, ceiling_of
from forerun.recipes.world.goal_tasks import GoalTasks, Protocol
from forerun.recipes.world.heads import embedded
from forerun.recipes.world.planners import PlanConfig
from forerun.recipes.world.play import BeforeLook, Played, play, undisturbed, wilson_interval
from forerun.recipes.world.wishes import Wish, goal_wish
from forerun.worldmodels.jepa.inverse import InverseModel
from forerun.worldmodels.jepa.probes import MlpProbe, r_squared
from forerun.worldmodels.latent_model import LatentModel

Report = Callable[[int, int, str], None]
"""Told (actions done, budget, who acts)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A model and how it is planned with.

    Attributes:
        model: The world model.
        seen: Episodes that it learned from, for maps.
        config: How it is planned with.
        wish: What is wanted; ``None``: the goal, as ``config.goal`` says.
        inverse: Guesses actions, for ``config.num_proposals``.
        alarm_above: As in :class:`forerun.recipes.world.agents.PlanningAgent`.
    """

    model: LatentModel
    seen: PixelEpisodes
    config: PlanConfig
    wish: Wish | None = None
    inverse: InverseModel | None = None
    alarm_above: float | None = None

    def wished(self) -> Wish:
        """Return what it wants; a map or a head is made here."""
        config = self.config
        return self.wish or goal_wish(
            self.model, self.seen, config.goal, cost_at=config.cost_at, kappa=config.kappa, seed=config.seed
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Success:
    """How often somebody reached the goal.

    Attributes:
        name: Who.
        protocol: In which tasks.
        num_successes: Goals reached.
        num_tasks: Goals in all.
        num_plans: Plans made, each task's counted; 0 for those who don't plan.
        cpu_s: CPU seconds of looking and planning.
    """

    name: str
    protocol: Protocol
    num_successes: int
    num_tasks: int
    num_plans: int
    cpu_s: float

    @property
    def rate(self) -> float:
        """Share of the goals that were reached."""
        return self.num_successes / self.num_tasks

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the rate, over tasks."""
        return wilson_interval(self.num_successes, self.num_tasks)

    @property
    def cpu_s_per_plan(self) -> float | None:
        """CPU seconds of one plan for one task; ``None`` for those who don't plan."""
        return self.cpu_s / self.num_plans if self.num_plans else None

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, with rate and 95% interval."""
        low, high = self.interval
        derived = {"success_rate": self.rate, "low": low, "high": high, "cpu_s_per_plan": self.cpu_s_per_plan}
        return asdict(self) | derived

    def line(self) -> str:
        """Return the numbers on one line."""
        low, high = self.interval
        plans = ""
        if self.cpu_s_per_plan is not None:
            plans = f"   {self.num_plans / self.num_tasks:.1f} plans of {self.cpu_s_per_plan:.2f} CPU-s"
        return (
            f"{self.protocol:<9} {self.name:<32} {self.rate:6.1%}  "
            f"({low:.1%} to {high:.1%}, {self.num_successes} of {self.num_tasks}){plans}"
        )


def pooled(groups: Sequence[Sequence[Success]]) -> list[Success]:
    """Return the rows of several models as one: those of one name and protocol are added up.

    Args:
        groups: Rows of each model, all with the same names in the same order.
    """
    return [
        replace(
            rows[0],
            num_successes=sum(row.num_successes for row in rows),
            num_tasks=sum(row.num_tasks for row in rows),
            num_plans=sum(row.num_plans for row in rows),
            cpu_s=sum(row.cpu_s for row in rows),
        )
        for rows in zip(*groups, strict=True)
    ]


def held_out_of(dataset: PixelDataset, manifest: Mapping[str, Any]) -> tuple[PixelEpisodes, PixelEpisodes]:
    """Return the episodes that a model learned from and those it never saw, of a dataset.

    Of its own training data, as the manifest says; of any other data, all episodes are held out, and those given to
    learn from serve for maps and galleries alone.
    """
    config = manifest["train_config"]
    return dataset.episodes.split(config["held_out_fraction"], seed=config["split_seed"])


def mlp_probe_r2(model: LatentModel, seen: PixelEpisodes, held_out: PixelEpisodes) -> dict[str, float]:
    """Return the R² of each known quantity, read off held-out embeddings by a network fitted on training ones.

    Args:
        model: Embeds.
        seen: Fits.
        held_out: Measures.
    """
    if not held_out.state_names:
        return {}
    latents, targets = embedded(model, held_out)
    values = r_squared(MlpProbe.fit(*embedded(model, seen))(latents), targets)
    return dict(zip(held_out.state_names, values.tolist(), strict=True))


def evaluate(
    contenders: Mapping[str, Contender],
    tasks: GoalTasks,
    *,
    others: Mapping[str, Agent] = MappingProxyType({}),
    seed: int = 0,
    before_look: BeforeLook = undisturbed,
    stops_at_goal: bool = True,
    has_bounds: bool = True,
    on_played: Callable[[str, Played], None] = lambda name, played: None,
    report: Report = lambda done, total, detail: None,
) -> tuple[list[Success], dict[str, tuple[Played, PlanningAgent]]]:
    """Let chance, contenders and the expert act in the same tasks.

    Args:
        contenders: By name.
        tasks: What to do.
        others: Who else acts, without a world model.
        seed: Of chance's actions.
        before_look: What disturbs the worlds, for everybody.
        stops_at_goal: As for :func:`~forerun.recipes.world.play.play`.
        has_bounds: Whether chance and the expert act, too.
        on_played: Told (who, what happened) after each.
        report: Progress.

    Returns:
        Success of each, and what happened to each contender, for pictures.
    """
    rows: list[Success] = []
    shown: dict[str, tuple[Played, PlanningAgent]] = {}

    def play_as(name: str, agent: Agent) -> Played:
        def show(done: int, total: int) -> None:
            report(done, total, f"{tasks.protocol}: {name}")

        played = play(tasks, agent, before_look=before_look, stops_at_goal=stops_at_goal, report=show)
        on_played(name, played)
        num_plans = agent.num_plans if isinstance(agent, PlanningAgent) else 0
        rows.append(
            Success(
                name=name,
                protocol=tasks.protocol,
                num_successes=int(played.is_success.sum()),
                num_tasks=len(played.is_success),
                num_plans=num_plans,
                cpu_s=played.cpu_s,
            )
        )
        return played

    if has_bounds:
        play_as("random", RandomAgent(tasks, seed=seed))
    for name, agent in others.items():
        play_as(name, agent)
    for name, contender in contenders.items():
        agent = PlanningAgent(
            contender.model,
            tasks,
            contender.config,
            wish=contender.wished(),
            inverse=contender.inverse,
            alarm_above=contender.alarm_above,
        )
        shown[name] = play_as(name, agent), agent
    if has_bounds:
        play_as(*ceiling_of(tasks))
    return rows, shown
