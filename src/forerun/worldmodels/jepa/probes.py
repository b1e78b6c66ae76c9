"""Probes: how well known quantities can be read off embeddings, by a ridge regression or a small network."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forerun.core.generator import keyed_generator
from forerun.data.normalizer import Normalizer
from forerun.nn.first_weights import seeded_weights
from forerun.training.loop import LoopConfig, TrainingLoop

_RIDGE = 1e-4
"""Penalty on standardised inputs, as a share of their number of samples."""
_HIDDEN, _BATCH = 128, 256


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearProbe:
    """A linear map from embeddings to known quantities.

    Attributes:
        latent_normalizer: Of the embeddings.
        target_normalizer: Of the quantities; one that hardly varies has scale 1.
        weight: Between the two.
    """

    latent_normalizer: Normalizer
    target_normalizer: Normalizer
    weight: Float[Tensor, "D Q"]

    @classmethod
    def fit(
        cls, latents: Float[Tensor, "samples D"], targets: Float[Tensor, "samples Q"], *, ridge: float = _RIDGE
    ) -> "LinearProbe":
        """Fit by ridge regression in float64.

        Args:
            latents: Embeddings.
            targets: Known quantities.
            ridge: Penalty on the squared weights, per sample and in standardised units.
        """
        latent_normalizer = Normalizer.of_mean_and_std(latents)
        target_normalizer = Normalizer.of_mean_and_std(targets)
        inputs, outputs = latent_normalizer(latents).double(), target_normalizer(targets).double()
        gram = inputs.T @ inputs / len(inputs) + ridge * torch.eye(inputs.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(gram, inputs.T @ outputs / len(inputs))
        return cls(latent_normalizer=latent_normalizer, target_normalizer=target_normalizer, weight=weight.float())

    def __call__(self, latents: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch Q"]:
        """Return the quantities read off embeddings, in their own units."""
        return self.target_normalizer.inverse(self.latent_normalizer(latents) @ self.weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class MlpProbe:
    """A network with one hidden layer from embeddings to known quantities.

    Attributes:
        latent_normalizer: Of the embeddings.
        target_normalizer: Of the quantities.
        network: Between the two.
    """

    latent_normalizer: Normalizer
    target_normalizer: Normalizer
    network: nn.Sequential

    @classmethod
    def fit(
        cls,
        latents: Float[Tensor, "samples D"],
        targets: Float[Tensor, "samples Q"],
        *,
        num_steps: int = 600,
        seed: int = 0,
    ) -> "MlpProbe":
        """Fit by AdamW on batches of 256.

        Args:
            latents: Embeddings.
            targets: Known quantities.
            num_steps: Optimiser steps.
            seed: Of weights and batches.
        """
        latent_normalizer = Normalizer.of_mean_and_std(latents)
        target_normalizer = Normalizer.of_mean_and_std(targets)
        inputs, outputs = latent_normalizer(latents), target_normalizer(targets)
        with seeded_weights(seed, "mlp probe"):
            network = nn.Sequential(
                nn.Linear(inputs.shape[1], _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, outputs.shape[1])
            )

        def batch_at(step: int) -> Tensor:
            return torch.randint(len(inputs), (_BATCH,), generator=keyed_generator(seed, "mlp probe", step))

        TrainingLoop(
            network,
            LoopConfig(num_steps=num_steps, learning_rate=5e-3, weight_decay=1e-3),
            batch_at=batch_at,
            loss=lambda rows: (network(inputs[rows]) - outputs[rows]).square().mean(),
        ).run()
        network.eval().requires_grad_(False)
        return cls(latent_normalizer=latent_normalizer, target_normalizer=target_normalizer, network=network)

    def __call__(self, latents: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch Q"]:
        """Return the quantities read off embeddings, in their own units."""
        return self.target_normalizer.inverse(self.network(self.latent_normalizer(latents)))


def r_squared(predicted: Float[Tensor, "samples Q"], targets: Float[Tensor, "samples Q"]) -> Float[Tensor, " Q"]:
    """Return for each quantity 1 - squared error / variance; 0 for one that does not vary.

    Below 0 where the mean of the targets would be better.
    """
    error = (predicted - targets).square().sum(dim=0)
    spread = (targets - targets.mean(dim=0)).square().sum(dim=0)
    return torch.where(spread > 0, 1 - error / spread.clamp(min=1e-12), torch.zeros_like(error))
