"""Descent on the bound itself: change one symbol or magnitude at a time, keep what lowers it.

Training minimises a smooth stand-in; the bound counts errors and whole symbols. A sweep tries every other level for
every coefficient. The search is free, as the bound holds for all messages at once.
"""

import math
from dataclasses import replace
from typing import Final, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from forerun.bounds.codebook import count_magnitudes, signed_levels, symbol_nats, symbol_values
from forerun.bounds.message import CodedPoint, num_magnitude_steps
from forerun.bounds.pac_bayes import kl_bound
from forerun.nn.subspace import Subspace

CROSS_ENTROPY_WEIGHTS: Final = (0.3, 0.1, 0.02)
"""Of a nat of cross-entropy beside the bound, stage by stage: first a guide, at last what decides between equals."""


Coded = TypeVar("Coded", bound=CodedPoint)


class _Descent:
    """The present message, its network's values, and its objective."""

    def __init__(
        self,
        network: Subspace,
        inputs: Tensor,
        labels: Tensor,
        message: CodedPoint,
        num_samples: int,
        other_nats: float,
    ) -> None:
        self.network, self.inputs, self.labels = network, inputs, labels
        self.num_samples, self.other_nats = num_samples, other_nats
        self.symbols, self.steps = list(message.symbols), list(message.magnitude_steps)
        self.values = self._unfold(self.symbols, self.steps)
        self.cross_entropy_weight, self.best = 0.0, math.inf

    def begin_stage(self, cross_entropy_weight: float) -> None:
        """Take the present message as the one to beat, under another weight."""
        self.cross_entropy_weight = cross_entropy_weight
        self.best = self._objective(self.values, self.symbols)

    def sweep(self) -> bool:
        """Try every change once; returns whether any was kept."""
        before = self.best
        top = len(self.steps)
        for index in range(len(self.symbols)):
            column = self.network.column(index)
            levels = signed_levels(self.steps).tolist()
            for symbol in range(-top, top + 1):
                if symbol == self.symbols[index]:
                    continue
                change = levels[symbol + top] - levels[self.symbols[index] + top]
                symbols = [*self.symbols[:index], symbol, *self.symbols[index + 1 :]]
                self._keep_if_better(self.values + change * column, symbols, self.steps)
        for index in range(top):
            for change in (-2, -1, 1, 2):
                steps = list(self.steps)
                steps[index] = min(max(steps[index] + change, 0), num_magnitude_steps() - 1)
                self._keep_if_better(self._unfold(self.symbols, steps), self.symbols, steps)
        self.values = self._unfold(self.symbols, self.steps)
        return self.best < before

    def _unfold(self, symbols: list[int], steps: list[int]) -> Tensor:
        return self.network.values(symbol_values(torch.tensor(symbols), steps))

    def _objective(self, values: Tensor, symbols: list[int]) -> float:
        scores = self.network.scores(self.inputs, values)
        num_errors = int((scores.argmax(dim=1) != self.labels).sum())
        nats = symbol_nats(count_magnitudes(symbols, len(self.steps))) + self.other_nats
        estimate = round(num_errors * self.num_samples / len(self.labels))
        bound = kl_bound(estimate, self.num_samples, nats)
        return bound + self.cross_entropy_weight * float(cross_entropy(scores, self.labels))

    def _keep_if_better(self, values: Tensor, symbols: list[int], steps: list[int]) -> None:
        objective = self._objective(values, symbols)
        if objective < self.best:
            self.best, self.values, self.symbols, self.steps = objective, values, symbols, steps


@torch.no_grad()
def refine(
    network: Subspace,
    inputs: Tensor,
    labels: Int[Tensor, " m"],
    message: Coded,
    *,
    num_samples: int,
    other_nats: float,
    max_sweeps: int,
) -> Coded:
    """Lower the bound of a message by coordinate descent.

    Args:
        network: The message's subspace.
        inputs: Prepared training examples, or some of them: then the number of errors is estimated from these.
        labels: Their classes.
        message: Where to start.
        num_samples: n, of all training examples.
        other_nats: What the bound pays beside the symbols: choices, codebook, ln(1/delta).
        max_sweeps: Sweeps over all coefficients at most, in each stage; a stage ends when one changes nothing.

    Returns:
        A message of the same kind, where no single change lowers the bound and a little cross-entropy any more, or
        the sweeps were used up.
    """
    descent = _Descent(network, inputs, labels, message, num_samples, other_nats)
    for weight in CROSS_ENTROPY_WEIGHTS:
        descent.begin_stage(weight)
        for _ in range(max_sweeps):
            if not descent.sweep():
                break
    return replace(message, symbols=tuple(descent.symbols), magnitude_steps=tuple(descent.steps))
