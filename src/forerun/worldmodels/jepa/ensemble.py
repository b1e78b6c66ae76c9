"""Several world models as one, and what they disagree on as a price: plans that only one of them believes in cost more.

Each model has a space of its own, so a state of the ensemble is the embeddings of all, one after the other, and a
score is made of each model's own. To a planner the two are a dynamics and an objective like any other.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from forerun.core.control import ActionBounds, History
from forerun.core.errors import ConfigError
from forerun.core.protocols import Objective
from forerun.data.normalizer import Normalizer
from forerun.worldmodels.jepa.checkpoint import load_model
from forerun.worldmodels.jepa.model import Jepa
from forerun.worldmodels.jepa.predictor import Predictor

_SAME_UNITS = 1e-3
"""Largest difference of two models' units of actions, as a share of the unit."""


class EnsembleModel:
    """World models side by side; see :class:`~forerun.worldmodels.latent_model.LatentModel`.

    Args:
        models: Two or more that were trained on blocks of the same size in the same units, such as with several seeds.

    Raises:
        ConfigError: There are fewer than two, or blocks or units of actions differ.
    """

    def __init__(self, models: Sequence[Jepa]) -> None:
        if len(models) < 2:
            raise ConfigError(f"an ensemble of {len(models)} model(s): must be two or more")
        first = models[0]
        for model in models[1:]:
            if model.action_dim != first.action_dim or not _has_units_of(model, first):
                raise ConfigError(
                    "an ensemble's models must take the same blocks of actions in the same units: train all of them on "
                    "one dataset with one split, with another --seed each"
                )
        self.models = tuple(models)
        self.action_dim = first.action_dim
        self.widths = [model.config.latent_dim for model in models]
        """Numbers of each model's embedding."""

    @property
    def action_normalizer(self) -> Normalizer:
        """From raw blocks to the models' units."""
        return self.models[0].action_normalizer

    @property
    def predictor(self) -> Predictor:
        """The predictor that looks back farthest."""
        return max((model.predictor for model in self.models), key=lambda predictor: predictor.history)

    def encode_all(self, pixels: UInt8[Tensor, "frames height width 3"]) -> Float[Tensor, "frames D"]:
        """Return the embeddings of each frame by all models."""
        return torch.cat([model.encode_all(pixels) for model in self.models], dim=1)

    def action_bounds(self, limit: float) -> ActionBounds:
        """As :meth:`forerun.worldmodels.jepa.model.Jepa.action_bounds`."""
        return self.models[0].action_bounds(limit)

    def rollout(
        self,
        history: History,
        actions: Float[Tensor, "envs samples horizon A"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "envs samples horizon D"]:
        """As :meth:`forerun.core.protocols.Dynamics.rollout`, every model from its own embeddings."""
        parts = history.states.split(self.widths, dim=-1)
        return torch.cat(
            [
                model.rollout(History(states=part, actions=history.actions), actions, generator=generator)
                for model, part in zip(self.models, parts, strict=True)
            ],
            dim=-1,
        )


class EnsembleObjective:
    r"""The mean of several models' scores less :math:`\kappa` times their standard deviation.

    With costs c that are minus the scores: :math:`\mathrm{mean}_m c_m + \kappa \, \mathrm{std}_m c_m`, the standard
    deviation over the models themselves (divided by their number).

    Args:
        objectives: One for each model, on its own embeddings, all of one scale.
        widths: Numbers of each model's embedding.
        kappa: What disagreement costs, at least 0; 0 takes the mean alone.

    Raises:
        ConfigError: There is not one objective for each model, or kappa is out of range.
    """

    def __init__(self, objectives: Sequence[Objective], widths: Sequence[int], *, kappa: float) -> None:
        if len(objectives) != len(widths) or not objectives:
            raise ConfigError(f"{len(objectives)} objectives for {len(widths)} models: must be one for each")
        if not 0 <= kappa < float("inf"):
            raise ConfigError(f"kappa={kappa}: must be finite and at least 0; 0 leaves disagreement out")
        self._objectives, self._widths, self._kappa = tuple(objectives), list(widths), kappa

    def score(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon D"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """As :meth:`forerun.core.protocols.Objective.score`."""
        seen, futures = history.states.split(self._widths, dim=-1), states.split(self._widths, dim=-1)
        scores = torch.stack(
            [
                objective.score(History(states=past, actions=history.actions), future, actions)
                for objective, past, future in zip(self._objectives, seen, futures, strict=True)
            ]
        )
        return scores.mean(dim=0) - self._kappa * scores.std(dim=0, correction=0)


def load_models(folders: Sequence[Path]) -> tuple[Jepa | EnsembleModel, dict[str, Any]]:
    """Return the model of one folder, or the ensemble of several, and the manifest of the first.

    Args:
        folders: Each as :func:`~forerun.worldmodels.jepa.checkpoint.load_model` takes it.

    Raises:
        CheckpointError: A folder holds no readable model.
        ConfigError: Models of an ensemble don't go together, or learned from different episodes: what is held out for
            one of them would not be for all.
    """
    loaded = [load_model(folder) for folder in folders]
    if len(loaded) == 1:
        return loaded[0]
    origins = [[manifest.get("data_digest"), *_split_of(manifest)] for _, manifest in loaded]
    for folder, origin in zip(folders, origins, strict=True):
        if origin != origins[0]:
            raise ConfigError(
                f"{folder}: learned from other episodes than {folders[0]}; an ensemble's models share data and split"
            )
    return EnsembleModel([model for model, _ in loaded]), loaded[0][1]


def _split_of(manifest: dict[str, Any]) -> tuple[float, int]:
    config = manifest["train_config"]
    return config["held_out_fraction"], config["split_seed"]


def _has_units_of(model: Jepa, other: Jepa) -> bool:
    ours, theirs = model.action_normalizer, other.action_normalizer
    gaps = torch.stack([(ours.shift - theirs.shift).abs(), (ours.scale - theirs.scale).abs()])
    return bool((gaps <= _SAME_UNITS * theirs.scale).all())
