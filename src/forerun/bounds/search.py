"""The search for a short message with few errors: train the coefficients, round them together, descend on the bound.

None of it is paid for, as the bound holds for all messages at once.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from forerun.bounds.codebook import fit_codebook
from forerun.bounds.message import CodedPoint, Message
from forerun.bounds.prior import Architecture
from forerun.bounds.refine import refine
from forerun.bounds.rounding import round_together
from forerun.nn.subspace import Subspace
from forerun.training.loop import LoopConfig, TrainingLoop

_ORDER_SEED: Final = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How to look for a short message with few errors.

    Attributes:
        num_steps: Optimiser steps before rounding.
        batch_size: Examples of a step, at most.
        learning_rate: Peak.
        square_penalty: Weight of the coefficients' mean square in the loss; flat places bear rounding.
        nat_weights: What a nat of message is worth in rounding, in nats of cross-entropy of one example; each is tried.
        num_rounds: Linearisations at most, for each weight.
        num_rounding_samples: Examples that rounding and descent look at, at most.
        num_sweeps: Sweeps of descent on the bound afterwards, at most, in each stage.
    """

    num_steps: int = 250
    batch_size: int = 1500
    learning_rate: float = 0.15
    square_penalty: float = 0.02
    nat_weights: tuple[float, ...] = (1.0, 2.0)
    num_rounds: int = 4
    num_rounding_samples: int = 5000
    num_sweeps: int = 5


LARGE_SEARCH: Final = SearchConfig(
    num_steps=1200, batch_size=500, learning_rate=0.1, square_penalty=0.01,
    nat_weights=(2.0,), num_rounding_samples=4000, num_sweeps=0,
)  # fmt: skip
"""For tens of thousands of examples."""


class _Coefficients(nn.Module):
    """The point of the subspace, as a module that the training loop can train."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(dim))


def train_coefficients(
    network: Subspace, inputs: Tensor, labels: Int[Tensor, " n"], config: SearchConfig
) -> Float[Tensor, " dim"]:
    """Return coefficients of low cross-entropy, not rounded.

    Args:
        network: The subspace.
        inputs: Prepared training examples.
        labels: Their classes.
        config: How to train.
    """
    model = _Coefficients(network.dim)
    order = torch.Generator().manual_seed(_ORDER_SEED)
    size = min(config.batch_size, len(labels))

    def batch_at(step: int) -> Tensor | slice:
        return slice(None) if size == len(labels) else torch.randint(len(labels), (size,), generator=order)

    def loss(batch: Tensor | slice) -> Tensor:
        fit = cross_entropy(network(inputs[batch], model.values), labels[batch])
        return fit + config.square_penalty * model.values.square().mean()

    loop = LoopConfig(
        num_steps=config.num_steps, learning_rate=config.learning_rate, weight_decay=0.0, clip_norm=float("inf")
    )
    TrainingLoop(model, loop, batch_at=batch_at, loss=loss).run()
    return model.values.detach()


def search_messages(
    network: Subspace,
    inputs: Tensor,
    labels: Int[Tensor, " n"],
    *,
    architecture: Architecture,
    levels: int,
    seed: int,
    other_nats: float,
    config: SearchConfig,
) -> list[Message]:
    """Return the points of :func:`search_points` as messages of an architecture and a seed, both of the grid's."""
    points = search_points(network, inputs, labels, levels=levels, other_nats=other_nats, config=config)
    return [
        Message(
            architecture=architecture, levels=levels, seed=seed,
            magnitude_steps=point.magnitude_steps, symbols=point.symbols,
        )
        for point in points
    ]  # fmt: skip


def search_points(
    network: Subspace,
    inputs: Tensor,
    labels: Int[Tensor, " n"],
    *,
    levels: int,
    other_nats: float,
    config: SearchConfig,
) -> list[CodedPoint]:
    """Return a coded point for each of the weights of its length, those that are alike once.

    Args:
        network: The subspace.
        inputs: Prepared training examples.
        labels: Their classes.
        levels: Quantisation levels.
        other_nats: What the bound pays beside the symbols: choices, codebook, ln(1/delta).
        config: How to search.
    """
    coefficients = train_coefficients(network, inputs, labels, config)
    steps = fit_codebook(coefficients, levels)
    part = slice(config.num_rounding_samples)
    points = []
    for weight in config.nat_weights:
        symbols = round_together(
            network, inputs[part], labels[part], coefficients, steps,
            nat_weight=weight / len(labels), max_rounds=config.num_rounds,
        )  # fmt: skip
        rounded = CodedPoint(magnitude_steps=tuple(steps), symbols=tuple(symbols.tolist()))
        points.append(
            refine(
                network,
                inputs[part],
                labels[part],
                rounded,
                num_samples=len(labels),
                other_nats=other_nats,
                max_sweeps=config.num_sweeps,
            )
        )
    return list(dict.fromkeys(points))
