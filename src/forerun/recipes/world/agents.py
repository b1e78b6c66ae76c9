"""Who acts in a task: a planner with a world model, the expert that knows the map, and chance."""

import time
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from forerun.core.control import History, Plan
from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator
from forerun.core.protocols import Objective
from forerun.envs.two_room import SPEED, TwoRoom
from forerun.envs.two_room_policies import expert_action
from forerun.planning.cem import Cem, CemConfig
from forerun.planning.objective import GoalDistance
from forerun.recipes.world.goal_tasks import GoalTasks
from forerun.worldmodels.jepa.landmarks import LandmarkMap
from forerun.worldmodels.jepa.model import Jepa


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanConfig:
    """How a world model is planned with.

    Attributes:
        horizon: Blocks of actions in a plan.
        execute_horizon: Blocks executed before the next plan; the published evaluation executes all.
        num_samples: Candidates of an iteration.
        num_elites: Best ones that the next iteration is fitted to.
        num_iterations: Iterations.
        goal: ``latent``: squared distance to the goal's embedding (published). ``landmarks``: length of the way over a
            map of embeddings seen in training.
        is_bounded: Whether candidates stay inside the box of actions; not so in the published evaluation.
        has_warm_start: Whether a search begins at what is left of the last plan; of no use where all of it is executed.
        deadline_s: Seconds after which a search ends with the best so far; ``None``: after all its iterations.
        seed: Root of chance.
    """

    horizon: int = 5
    execute_horizon: int = 5
    num_samples: int = 300
    num_elites: int = 30
    num_iterations: int = 10
    goal: Literal["latent", "landmarks"] = "latent"
    is_bounded: bool = False
    has_warm_start: bool = False
    deadline_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what the planner itself does not.

        Raises:
            ConfigError: More blocks are to be executed than planned.
        """
        if not 1 <= self.execute_horizon <= self.horizon:
            raise ConfigError(f"execute_horizon={self.execute_horizon}: must lie in [1, horizon={self.horizon}]")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ConfigError(f"deadline_s={self.deadline_s}: must be above 0 seconds, or None for no deadline")


class Agent(Protocol):
    """Acts in the tasks that are not done yet."""

    def act(
        self, world: TwoRoom, frames: UInt8[np.ndarray, "active height width 3"], active: Int64[np.ndarray, " active"]
    ) -> Float[np.ndarray, "active block"]:
        """Return a block of raw actions for each active task.

        Args:
            world: All tasks; only an agent that knows the map may look into it.
            frames: What the camera sees of the active ones.
            active: Their numbers, ascending.
        """
        ...


class RandomAgent:
    """Acts by chance, evenly in the box of actions.

    Args:
        tasks: Where it acts.
        seed: Draws.
    """

    def __init__(self, tasks: GoalTasks, *, seed: int) -> None:
        self._block, self._rng = 2 * tasks.frame_skip, np.random.default_rng(seed)

    def act(self, world: TwoRoom, frames: np.ndarray, active: np.ndarray) -> np.ndarray:
        """As :meth:`Agent.act`."""
        return self._rng.uniform(-1, 1, (len(active), self._block))


class ExpertAgent:
    """Knows map and positions: the most that can be reached.

    Args:
        tasks: Where it acts.
    """

    def __init__(self, tasks: GoalTasks) -> None:
        self._tasks = tasks

    def act(self, world: TwoRoom, frames: np.ndarray, active: np.ndarray) -> np.ndarray:
        """As :meth:`Agent.act`: the block is what the expert would do step by step."""
        blocks: list[np.ndarray] = []
        for task in active:
            position, block = world.positions[task].copy(), list[np.ndarray]()
            for _ in range(self._tasks.frame_skip):
                block.append(expert_action(self._tasks.looks[task], position, self._tasks.goals[task]))
                position = position + SPEED * block[-1]
            blocks.append(np.concatenate(block))
        return np.stack(blocks)


class PlanningAgent:
    """Plans with a world model in latent space, all active tasks at once; goals are embedded once.

    Args:
        model: The world model.
        tasks: Where it acts.
        config: How it plans.
        landmarks: The map, for goals by ``landmarks``.
    """

    def __init__(
        self, model: Jepa, tasks: GoalTasks, config: PlanConfig, *, landmarks: LandmarkMap | None = None
    ) -> None:
        self.config = config
        self._model, self._landmarks = model, landmarks
        self._goals = model.encode_all(torch.from_numpy(tasks.goal_pixels))
        self._action_dim = model.action_dim
        self._left: Tensor | None = None
        self._warm_starts: Tensor | None = None
        self.plans: list[tuple[Int64[np.ndarray, " active"], Plan]] = []
        """Every plan made, with the numbers of its tasks."""

    def act(self, world: TwoRoom, frames: np.ndarray, active: np.ndarray) -> np.ndarray:
        """As :meth:`Agent.act`; looks at the frames alone."""
        if self._left is None or not self._left.shape[1]:
            self._left = self._planned(frames, active, num_tasks=len(world.looks))
        block = self._left[torch.from_numpy(active), 0]
        self._left = self._left[:, 1:]
        return self._model.action_normalizer.inverse(block).numpy()

    def _planned(self, frames: np.ndarray, active: np.ndarray, *, num_tasks: int) -> Tensor:
        """Return the blocks to execute next, of all tasks; those of tasks that are done stay 0."""
        config = self.config
        present = self._model.encode_all(torch.from_numpy(frames))
        planner = Cem(
            CemConfig(
                horizon=config.horizon,
                num_samples=config.num_samples,
                num_elites=config.num_elites,
                num_iterations=config.num_iterations,
                returns="mean",
            ),
            dynamics=self._model,
            objective=self._objective(active),
            bounds=self._model.action_bounds(1.0) if config.is_bounded else None,
        )
        rows = torch.from_numpy(active)
        deadline_s, began = config.deadline_s, time.perf_counter()
        plan = planner.plan(
            History.of_present(present, action_dim=self._action_dim),
            generator=keyed_generator(config.seed, "plan", len(self.plans)),
            warm_start=None if self._warm_starts is None else self._warm_starts[rows],
            is_late=lambda: deadline_s is not None and time.perf_counter() - began > deadline_s,
        )
        self.plans.append((active, plan))
        blocks = torch.zeros(num_tasks, config.horizon, self._action_dim)
        blocks[rows] = plan.actions
        if config.has_warm_start:
            self._warm_starts = torch.zeros_like(blocks)
            self._warm_starts[rows] = plan.shifted(config.execute_horizon)
        return blocks[:, : config.execute_horizon]

    def _objective(self, active: np.ndarray) -> Objective:
        goals = self._goals[torch.from_numpy(active)]
        if self.config.goal == "latent" or self._landmarks is None:
            return -GoalDistance(goals)
        return self._landmarks.objective(goals)
