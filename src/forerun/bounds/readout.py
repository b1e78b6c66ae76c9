r"""The search behind cells: a linear readout of fixed features, sparse and of few levels.

The weights are many and most of them zero, so the message says which are not. A Gaussian is trained over each weight,
with the divergence from a prior as its price,

.. math:: \mathbb{E}_{w \sim N(\mu, \sigma^2)} [\text{cross-entropy}]
    + \lambda \, \mathrm{KL}(N(\mu, \sigma^2) \| N(0, s^2)) / n,

where s is the best one for each place of the spectrum. Weights that are not worth their bits shrink to zero. The means
are then rounded together; as the scores are linear, the Gauss-Newton form needs no differences. Nothing of it is paid.

Reference:
    Blundell, Cornebise, Kavukcuoglu, Wierstra, "Weight uncertainty in neural networks", arXiv 1505.05424;
    Kingma, Salimans, Welling, "Variational dropout and the local reparameterization trick", arXiv 1506.02557.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from forerun.bounds.codebook import nearest_step, signed_levels
from forerun.bounds.message import Message, count_tables
from forerun.bounds.prior import Architecture, PriorGrid
from forerun.bounds.readout_descent import CodedReadout
from forerun.bounds.rounding import Quadratic, descend_quadratic
from forerun.training.loop import LoopConfig, TrainingLoop

READOUT_LEVELS: Final = 5
"""Zero and two magnitudes of either sign."""

_SEED: Final = 0
_FIRST_SPREAD: Final = 0.01
_RISE: Final = 0.3
_DAMPING: Final = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutConfig:
    """How to look for a sparse readout.

    Attributes:
        num_steps: Optimiser steps of the Gaussians.
        batch_size: Examples of a step, at most.
        learning_rate: Peak.
        nat_weight: What a nat of divergence is worth, in nats of cross-entropy of one example.
        rounding_weights: What a nat of message is worth in rounding, likewise; each is tried.
        quantiles: Of the means' sizes that become the magnitudes; each pair is tried.
        num_curvature_samples: Examples that the Gauss-Newton matrix is summed over, at most.
        num_passes: Of descent on the bound, at most.
        num_trials: Changes that each pass tries.
    """

    num_steps: int = 1800
    batch_size: int = 1000
    learning_rate: float = 8e-3
    nat_weight: float = 6.0
    rounding_weights: tuple[float, ...] = (6.0, 7.0)
    quantiles: tuple[tuple[float, float], ...] = ((0.84, 0.96), (0.9, 0.98))
    num_curvature_samples: int = 20_000
    num_passes: int = 4
    num_trials: int = 500


class _GaussianReadout(nn.Module):
    """A Gaussian over each weight of a linear readout, and biases."""

    def __init__(self, num_classes: int, num_features: int) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.zeros(num_classes, num_features))
        spread = math.log(_FIRST_SPREAD)
        self.log_spreads = nn.Parameter(torch.full((num_classes, num_features), spread))
        self.biases = nn.Parameter(torch.zeros(num_classes))

    def noisy_scores(self, features: Tensor, source: torch.Generator) -> Tensor:
        scores = features @ self.means.T + self.biases
        variances = features.square() @ torch.exp(2 * self.log_spreads).T
        return scores + (variances + 1e-8).sqrt() * torch.randn(scores.shape, generator=source)

    def divergence(self, num_places: int) -> Tensor:
        """Return the divergence from the prior whose variance is best for each place of the spectrum."""
        energies = (self.means.square() + torch.exp(2 * self.log_spreads)).view(len(self.means), -1, num_places)
        count = energies[..., 0].numel()
        return count / 2 * energies.mean(dim=(0, 1)).clamp(min=1e-12).log().sum() - self.log_spreads.sum()


def train_readout(
    features: Float[Tensor, "n features"], labels: Int[Tensor, " n"], *, num_places: int, config: ReadoutConfig
) -> Float[Tensor, "classes features_and_bias"]:
    """Return means of weights, biases in the last column, with no more in them than pays.

    Args:
        features: All training examples'; place of the spectrum is the index modulo ``num_places``.
        labels: Their classes, each of which occurs.
        num_places: Of the spectrum.
        config: How to train.
    """
    sizes = features.square().mean(dim=0).sqrt().clamp(min=1e-6)
    model = _GaussianReadout(int(labels.max()) + 1, features.shape[1])
    source = torch.Generator().manual_seed(_SEED)
    size = min(config.batch_size, len(labels))

    def batch_at(step: int) -> tuple[float, Tensor]:
        share = min(1.0, (step + 1) / (_RISE * config.num_steps))
        return share * config.nat_weight / len(labels), torch.randint(len(labels), (size,), generator=source)

    def loss(batch: tuple[float, Tensor]) -> Tensor:
        price, chosen = batch
        scores = model.noisy_scores(features[chosen] / sizes, source)
        return cross_entropy(scores, labels[chosen]) + price * model.divergence(num_places)

    loop = LoopConfig(
        num_steps=config.num_steps, learning_rate=config.learning_rate, weight_decay=0.0, clip_norm=float("inf")
    )
    TrainingLoop(model, loop, batch_at=batch_at, loss=loss).run()
    return torch.cat([model.means.detach() / sizes, model.biases.detach()[:, None]], dim=1)


@torch.no_grad()
def expand_readout(
    columns: Float[Tensor, "n columns"],
    labels: Int[Tensor, " n"],
    weights: Float[Tensor, "classes columns"],
    *,
    num_curvature_samples: int,
) -> Quadratic:
    """Return the quadratic form of the cross-entropy in all weights, class by class.

    Args:
        columns: Features, and a column of ones.
        labels: Classes.
        weights: The point.
        num_curvature_samples: Examples for the matrix; the gradient takes all.
    """
    residual = torch.softmax(columns @ weights.T, dim=1)
    residual[torch.arange(len(labels)), labels] -= 1
    some = columns[:num_curvature_samples]
    chances = torch.softmax(some @ weights.T, dim=1)
    num_classes, size = weights.shape
    curvature = torch.zeros(num_classes, size, num_classes, size)
    for first in range(num_classes):
        for second in range(first, num_classes):
            share = chances[:, first] * (float(first == second) - chances[:, second])
            block = (some * share[:, None]).T @ some / len(some)
            curvature[first, :, second] = block
            curvature[second, :, first] = block.T
    return Quadratic(
        centre=weights.flatten().clone(),
        gradient=(residual.T @ columns).flatten() / len(labels),
        curvature=curvature.view(num_classes * size, num_classes * size),
    )


def _class_by_class(values: Tensor, num_classes: int) -> Tensor:
    """Return what is in the message's order, weights and then biases, as rows with the bias last."""
    return torch.cat([values[:-num_classes].view(num_classes, -1), values[-num_classes:, None]], dim=1)


def _message_order(rows: Tensor) -> Tensor:
    return torch.cat([rows[:, :-1].flatten(), rows[:, -1]])


def search_readout(
    grid: PriorGrid,
    inputs: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, " n"],
    *,
    architecture: Architecture,
    seed: int,
    other_nats: float,
    config: ReadoutConfig,
) -> Message:
    """Return the best message, of five levels, that the configuration's ways of rounding and descent on the bound find.

    Args:
        grid: The prior.
        inputs: What :func:`~forerun.bounds.prior.prepare_inputs` makes of the training examples.
        labels: Their classes.
        architecture: Cells.
        seed: Named in the message; cells use none.
        other_nats: What the bound pays beside the symbols: choices, codebook, ln(1/delta).
        config: How to search.
    """
    features, num_classes = inputs.flatten(1), grid.num_classes
    weights = train_readout(features, labels, num_places=inputs.shape[2] * inputs.shape[3], config=config)
    columns = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    form = expand_readout(columns, labels, weights, num_curvature_samples=config.num_curvature_samples)
    tables = _class_by_class(torch.tensor(count_tables(grid, architecture, weights.numel())), num_classes)
    rounded: list[tuple[float, CodedReadout]] = []
    for quantiles in config.quantiles:
        magnitudes = torch.quantile(weights[:, :-1].abs().flatten(), torch.tensor(quantiles))
        steps = [nearest_step(max(float(size), 1e-9)) for size in magnitudes]
        nearest = (weights.flatten()[:, None] - signed_levels(steps)).abs().argmin(dim=1) - len(steps)
        for weight in config.rounding_weights:
            symbols = descend_quadratic(
                form, nearest, steps,
                nat_weight=weight / len(labels), damping=_DAMPING / len(labels), tables=tables.flatten(),
            )  # fmt: skip
            readout = CodedReadout(columns, labels, symbols.view_as(weights), steps, tables, other_nats)
            rounded.append((weight, readout))
    weight, best = min(rounded, key=lambda pair: pair[1].best)
    best.descend(nat_weight=weight, num_passes=config.num_passes, num_trials=config.num_trials)
    return Message(
        architecture=architecture, levels=READOUT_LEVELS, seed=seed, magnitude_steps=tuple(best.steps),
        symbols=tuple(_message_order(best.symbols).tolist()),
    )  # fmt: skip
