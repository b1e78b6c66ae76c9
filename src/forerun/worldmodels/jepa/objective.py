"""The loss: the error of the predicted embedding, and something that keeps embeddings from collapsing."""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import relu

from forerun.worldmodels.jepa.config import ObjectiveConfig
from forerun.worldmodels.jepa.model import Jepa
from forerun.worldmodels.jepa.sigreg import sigreg

_VARIANCE_FLOOR = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowBatch:
    """Windows of episodes.

    Attributes:
        pixels: T + 1 frames of each window.
        actions: The T actions between them, raw; NaN where an episode ends.
        generator: Of the chance in the loss; a function of the step.
    """

    pixels: UInt8[Tensor, "B T_plus_one height width 3"]
    actions: Float[Tensor, "B T A"]
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerms:
    """The loss and what it is made of.

    Attributes:
        total: What is minimised.
        prediction: Mean squared error over windows, steps and dimensions.
        regularizer: Before its weight.
    """

    total: Float[Tensor, ""]
    prediction: Float[Tensor, ""]
    regularizer: Float[Tensor, ""]


class JepaObjective:
    """Computes the loss of a model on windows.

    Args:
        model: Read; for ``ema`` an average of its weights is kept here.
        config: What is minimised.

    Reference:
        Maes et al. 2026 (arXiv 2603.19312): the squared error to the next embedding, gradient flowing into both, plus
        lambda SIGReg of each step's batch.
    """

    def __init__(self, model: Jepa, config: ObjectiveConfig) -> None:
        self._model, self.config = model, config
        self.target: Jepa | None = None
        """The average of weights that gives the target under ``ema``, else ``None``."""
        if config.regularizer == "ema":
            self.target = copy.deepcopy(model).requires_grad_(False)

    def loss(self, batch: WindowBatch) -> LossTerms:
        """Return the loss of some windows; the model is in training mode."""
        latents_BTD = self._model.encode(batch.pixels)
        targets_BTD = latents_BTD
        if self.target is not None:
            with torch.no_grad():
                targets_BTD = self.target.train().encode(batch.pixels)
        actions_BTA = self._model.standardised(batch.actions)
        predicted_BTD = self._model.predict(latents_BTD[:, :-1], actions_BTA)
        prediction = (predicted_BTD.float() - targets_BTD[:, 1:].float()).square().mean()
        regularizer = self._regularizer(latents_BTD, batch.generator)
        return LossTerms(
            total=prediction + self.config.weight * regularizer, prediction=prediction, regularizer=regularizer
        )

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the target follow the weights, where there is one."""
        if self.target is None:
            return
        for old, new in zip(self.target.parameters(), self._model.parameters(), strict=True):
            old.lerp_(new, 1 - self.config.ema_decay)
        for old, new in zip(self.target.buffers(), self._model.buffers(), strict=True):
            old.copy_(new)

    def _regularizer(self, latents_BTD: Tensor, generator: torch.Generator) -> Tensor:
        if self.config.weight == 0 or self.config.regularizer == "ema":
            return latents_BTD.new_zeros(())
        if self.config.regularizer == "vicreg":
            return vicreg(latents_BTD.transpose(0, 1))
        return sigreg(latents_BTD.transpose(0, 1), self.config.sigreg, generator=generator)


def vicreg(embeddings_TBD: Float[Tensor, "T B D"]) -> Float[Tensor, ""]:
    """Return how far standard deviations fall below 1, plus the squared covariances between dimensions, over D.

    Reference:
        Bardes et al. 2021 (arXiv 2105.04906), its variance and covariance terms, with one weight for both.
    """
    with torch.autocast(embeddings_TBD.device.type, enabled=False):
        centred_TBD = embeddings_TBD.float() - embeddings_TBD.float().mean(dim=1, keepdim=True)
        num_others = max(1, centred_TBD.shape[1] - 1)
        covariance_TDD = centred_TBD.transpose(1, 2) @ centred_TBD / num_others
        variance_TD = covariance_TDD.diagonal(dim1=1, dim2=2)
        std_loss = relu(1 - (variance_TD + _VARIANCE_FLOOR).sqrt()).mean()
        off_diagonal_TDD = covariance_TDD - torch.diag_embed(variance_TD)
        return std_loss + off_diagonal_TDD.square().sum(dim=(1, 2)).mean() / embeddings_TBD.shape[-1]
