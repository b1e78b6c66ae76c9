"""One episode with its imagined futures, as a GIF."""

from pathlib import Path
from typing import Final

from jaxtyping import Float
from torch import Tensor

from forerun.core.protocols import Objective
from forerun.envs.control_tasks import control_task
from forerun.planning.episodes import run_episodes
from forerun.recipes.mpc.collect import episode_seeds
from forerun.recipes.mpc.contenders import Setting, contender, opened, task_objective
from forerun.recipes.mpc.figure import EpisodeRecorder, animate
from forerun.recipes.mpc.film import Wish, film
from forerun.recipes.mpc.maze_film import animate_maze
from forerun.recipes.mpc.push_film import animate_push
from forerun.recipes.mpc.studies import study
from forerun.worldmodels.diffusion.bundle import ModelBundle

_SCENES: Final = {"pointmaze": animate_maze, "push": animate_push}
"""Tasks that are drawn as a scene; of the others the numbers of the state are."""


def render_episode(
    bundle: ModelBundle,
    path: Path,
    *,
    way: str = "ssr",
    objective: Objective | None = None,
    title: str | None = None,
    seed: int = 0,
) -> float:
    """Run an episode and draw it.

    Args:
        bundle: The models.
        path: File to write, ``.gif``.
        way: Way to control that plans.
        objective: What is wanted; ``None``: the task's reward.
        title: Above the picture; ``None``: the task's name.
        seed: Of the start and of planning.

    Returns:
        The episode's return by the task's own reward.
    """
    task = control_task(bundle.task)
    setting = Setting(task=task, bundle=bundle, objective=objective or task_objective(task, bundle))
    controller, recorder = contender(way).controller(setting), EpisodeRecorder()

    def act(states: Float[Tensor, "envs state"], env_step: int, /) -> Float[Tensor, "envs action"]:
        actions = controller.act(states)
        assert controller.last_plan is not None
        recorder.take(states[0].numpy(), controller.last_plan)
        return actions

    seeds = episode_seeds(seed, "evaluation", 1)
    episodes = run_episodes(task.make_env(1), act, task=task, seeds=seeds, source="rendered")
    if task.name in _SCENES:
        _SCENES[task.name](recorder.frames, path, title=title or "seen (blue), imagined (grey), chosen (orange)")
    else:
        animate(recorder.frames, bundle.state_names, path, title=title or task.name)
    return float(episodes.returns[0])


def render_study(models: Path, path: Path) -> None:
    """Draw an episode of a study's models; a runner runs, and then runs at a speed that nobody trained.

    Args:
        models: Their folder.
        path: File to write, ``.gif``.
    """
    setting = opened(models)
    if setting.task.name == "halfcheetah":
        steady = "near(x_velocity=3.0) + 0.05 * energy()"
        wishes = (Wish(objective="task()", num_steps=120), Wish(objective=steady, num_steps=120, value=3.0))
        # Eight denoising steps cost four times as much as the default and hardly ever fall.
        film(setting, wishes, path, way="ssr-8-8")
    elif setting.task.name == "walker2d":
        (goal,) = study("walker2d").new_goals
        wishes = (
            Wish(objective="task()", num_steps=150),
            Wish(objective=goal.wish, num_steps=150, value=goal.value),
        )
        film(setting, wishes, path, shown=goal.name)
    else:
        render_episode(setting.bundle, path)
