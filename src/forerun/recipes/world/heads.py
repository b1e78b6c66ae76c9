"""Heads: what is known of training frames, learned from their embeddings, so that plans can be scored by it."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.errors import TrajectoryError
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.worldmodels.jepa.probes import LinearProbe, MlpProbe
from forerun.worldmodels.latent_model import LatentModel

HeadName = Literal["linear", "network"]
Head = LinearProbe | MlpProbe
_NUM_FRAMES = 4000


def fit_head(model: LatentModel, episodes: PixelEpisodes, *, kind: HeadName = "network", seed: int = 0) -> Head:
    """Return a head that reads the known quantities of some episodes off a model's embeddings.

    Args:
        model: Embeds; stays as it is.
        episodes: That it learned from, with known quantities: positions, or a reward recorded with the frames.
        kind: A linear map, or a network with one hidden layer.
        seed: Of the network's weights and batches.

    Raises:
        TrajectoryError: Nothing is known of these episodes.
    """
    if not episodes.state_names:
        raise TrajectoryError(
            f"{episodes.source}: nothing is known of these frames; import them with --state-keys, the columns of known "
            "quantities or of a reward"
        )
    latents, targets = embedded(model, episodes)
    return LinearProbe.fit(latents, targets) if kind == "linear" else MlpProbe.fit(latents, targets, seed=seed)


def embedded(
    model: LatentModel, episodes: PixelEpisodes, *, num_frames: int = _NUM_FRAMES
) -> tuple[Float[Tensor, "frames D"], Float[Tensor, "frames Q"]]:
    """Return embeddings and known quantities of frames, evenly over the episodes.

    Args:
        model: Embeds.
        episodes: Of the frames.
        num_frames: At most.
    """
    rows = np.linspace(0, len(episodes.pixels) - 1, min(len(episodes.pixels), num_frames)).astype(int)
    return (
        model.encode_all(torch.from_numpy(episodes.pixels[rows])),
        torch.from_numpy(np.float32(episodes.states[rows])),
    )
