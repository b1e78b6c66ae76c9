"""Pictures of a world model: a plan as it was imagined and as it went, surprise over time, health over training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from forerun.core.dependencies import import_optional
from forerun.core.errors import TrajectoryError
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.recipes.world.agents import PlanningAgent
from forerun.recipes.world.goal_tasks import GoalTasks
from forerun.recipes.world.play import Played
from forerun.recipes.world.surprise_benchmark import SurpriseResult
from forerun.worldmodels.jepa.model import Jepa
from forerun.worldmodels.latent_model import LatentModel

_GIF_SCALE: Final = 5
_GIF_GAP: Final = 2
_GALLERY_FRAMES: Final = 3000
_FRAME_MS: Final = 350
_LAST_FRAME_MS: Final = 1500
_HEALTH_PANELS: Final = (
    ("embedding_std", "std of embeddings"),
    ("effective_rank", "effective rank"),
    ("gaussianity", "distance from Gaussian (1: none)"),
    ("prediction_over_copying", "prediction error / copying"),
    ("action_sensitivity", "action sensitivity"),
    ("mean_probe_r2", "linear probe R²"),
)


def check_picture_packages() -> None:
    """Find out before any work whether pictures can be made.

    Raises:
        MissingDependencyError: matplotlib or Pillow is not installed.
    """
    import_optional("matplotlib.figure", extra="plot", purpose="a figure")
    import_optional("PIL.Image", extra="plot", purpose="a GIF")


def plan_frames(
    tasks: GoalTasks,
    played: Played,
    agent: PlanningAgent,
    task: int,
    *,
    gallery_latents: Float[Tensor, "gallery D"],
    gallery_pixels: UInt8[np.ndarray, "gallery height width 3"],
) -> UInt8[np.ndarray, "looks height three_widths 3"]:
    """Return what one task looked like, block by block: seen, imagined, wanted, side by side.

    What the model imagined is an embedding; shown is the frame of a gallery whose embedding is nearest.

    Args:
        tasks: All tasks.
        played: What happened.
        agent: Who planned.
        task: Which one.
        gallery_latents: Embeddings of the gallery.
        gallery_pixels: Its frames, of training episodes.
    """
    imagined = [played.frames[0, task]]
    for made in agent.plans:
        if task in made.tasks:
            states = made.plan.states[int(np.searchsorted(made.tasks, task))]
            nearest = torch.cdist(states, gallery_latents).argmin(dim=1).numpy()
            # What an earlier plan imagined of the time from here on never came about.
            imagined = [*imagined[: made.block + 1], *gallery_pixels[nearest][: agent.config.execute_horizon]]
    num_looks = min(len(imagined), len(played.frames))
    if played.is_success[task]:  # what came after it was there says nothing
        distances = tasks.task.distances(played.positions[:, task], tasks.goals[[task]])
        num_looks = min(num_looks, int(distances.argmin()) + 1)
    gap = np.full((tasks.resolution, _GIF_GAP, 3), 255, np.uint8)
    goal = tasks.goal_pixels[task]
    return np.stack(
        [
            np.concatenate([played.frames[look, task], gap, imagined[look], gap, goal], axis=1)
            for look in range(num_looks)
        ]
    )


def write_plan_gif(
    path: Path, tasks: GoalTasks, played: Played, agent: PlanningAgent, *, model: LatentModel, gallery: PixelEpisodes
) -> None:
    """Write the longest of the plans that reached their goal (or the first, if none did) as :func:`plan_frames` shows.

    Args:
        path: File to write.
        tasks: All tasks.
        played: What happened.
        agent: Who planned.
        model: Its world model.
        gallery: Episodes whose frames stand for what was imagined.
    """
    gap = tasks.task.distances(tasks.goals, tasks.starts)
    task = int(np.where(played.is_success, gap, 0).argmax())
    rows = np.linspace(0, len(gallery.pixels) - 1, min(len(gallery.pixels), _GALLERY_FRAMES)).astype(int)
    pixels = gallery.pixels[rows]
    latents = model.encode_all(torch.from_numpy(pixels))
    write_gif(path, plan_frames(tasks, played, agent, task, gallery_latents=latents, gallery_pixels=pixels))


def write_gif(path: Path, frames: UInt8[np.ndarray, "looks height width 3"]) -> None:
    """Write an animation, enlarged, that repeats.

    Raises:
        MissingDependencyError: Pillow is not installed.
    """
    image = import_optional("PIL.Image", extra="plot", purpose="a GIF")
    large = frames.repeat(_GIF_SCALE, axis=1).repeat(_GIF_SCALE, axis=2)
    first, *others = [image.fromarray(frame) for frame in large]
    durations = [_FRAME_MS] * len(others) + [_LAST_FRAME_MS]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)


def draw_surprise(path: Path, result: SurpriseResult) -> None:
    """Draw surprise over time around each kind of event, with the frames before and at one of them.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figures = import_optional("matplotlib.figure", extra="plot", purpose="a figure")
    figure = figures.Figure(figsize=(4 * len(result.events), 5), layout="constrained")
    panels = figure.subplots(2, len(result.events), height_ratios=(3, 1.3))
    frames = np.arange(1, result.undisturbed.shape[1] + 1)
    for column, (name, event) in enumerate(result.events.items()):
        axes = panels[0, column]
        for surprises, color, label in (
            (result.undisturbed, "0.5", "undisturbed"),
            (event.surprises, "#d55e00", f"with {name}"),
        ):
            low, middle, high = np.quantile(surprises.numpy(), [0.1, 0.5, 0.9], axis=0)
            axes.plot(frames, middle, color=color, label=label)
            axes.fill_between(frames, low, high, color=color, alpha=0.25, linewidth=0)
        axes.axhline(result.threshold, color="black", linestyle="--", linewidth=0.8, label="alarm")
        axes.axvline(result.event_frame, color="black", linestyle=":", linewidth=0.8)
        axes.set(yscale="log", xlabel="frame", title=f"{name}: AUROC {event.auroc:.3f}")
        axes.legend(fontsize="x-small")
        first = event.episodes.first_rows[0] + result.event_frame
        pair = np.concatenate([event.episodes.pixels[first - 1], event.episodes.pixels[first]], axis=1)
        panels[1, column].imshow(pair)
        panels[1, column].set(xticks=[], yticks=[], xlabel="the frame before, and the frame at the event")
    panels[0, 0].set_ylabel("surprise (median, 10% to 90%)")
    figure.savefig(path, dpi=110)


def draw_latent_map(path: Path, model: Jepa, episodes: PixelEpisodes) -> None:
    """Draw the embeddings of some frames in their two directions of most variance, once for each known quantity.

    Args:
        path: File to write.
        model: Embeds.
        episodes: At least one known quantity; frames of every episode.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        TrajectoryError: Nothing is known of these frames.
    """
    figures = import_optional("matplotlib.figure", extra="plot", purpose="a figure")
    if not episodes.state_names:
        raise TrajectoryError(f"{episodes.source}: no known quantity to colour embeddings by; leave --map out")
    rows = np.linspace(0, len(episodes.pixels) - 1, min(len(episodes.pixels), _GALLERY_FRAMES)).astype(int)
    latents = model.encode_all(torch.from_numpy(episodes.pixels[rows]))
    centred = latents - latents.mean(dim=0)
    places = (centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T).numpy()
    figure = figures.Figure(figsize=(5 * len(episodes.state_names), 4.2), layout="constrained")
    panels = figure.subplots(1, len(episodes.state_names), squeeze=False)[0]
    for column, (axes, name) in enumerate(zip(panels, episodes.state_names, strict=True)):
        dots = axes.scatter(*places.T, c=episodes.states[rows, column], s=5, cmap="viridis")
        figure.colorbar(dots, ax=axes, label=name)
        axes.set(xlabel="first direction", ylabel="second direction")
    figure.savefig(path, dpi=110)


def draw_health(path: Path, looks: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draw the monitor's numbers over training.

    Args:
        path: File to write.
        looks: For each run, by its name: what ``health.json`` holds.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figures = import_optional("matplotlib.figure", extra="plot", purpose="a figure")
    figure = figures.Figure(figsize=(11, 5.5), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(2, 3).flat, _HEALTH_PANELS, strict=True):
        for name, rows in looks.items():
            rows = [row for row in rows if row[key] is not None]
            axes.plot([row["step"] for row in rows], [row[key] for row in rows], ".-", label=name)
        axes.set(title=title, xlabel="step")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
