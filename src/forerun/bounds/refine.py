"""Descent on the bound itself: change one symbol or magnitude at a time, keep what lowers it.

Training minimises a smooth stand-in; the bound counts errors and whole symbols. A sweep tries every other level for
every coefficient. The search is free, as the bound holds for all messages at once.
"""

import math
from dataclasses import replace
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from forerun.bounds.message import Message, num_magnitude_steps, step_to_magnitude
from forerun.bounds.pac_bayes import kl_bound
from forerun.nn.subspace import SubspaceMlp

CROSS_ENTROPY_WEIGHTS: Final = (0.3, 0.1, 0.02)
"""Of a nat of cross-entropy beside the bound, stage by stage: first a guide, at last what decides between equals."""


def symbol_nats(magnitude_counts: list[int]) -> float:
    """Return the information of the symbols, signs included, under the adaptive code: it depends on the counts only."""
    num_classes, total = len(magnitude_counts), sum(magnitude_counts)
    nats = math.lgamma(total + num_classes / 2) - math.lgamma(num_classes / 2)
    nats -= sum(math.lgamma(count + 0.5) - math.lgamma(0.5) for count in magnitude_counts)
    return nats + sum(magnitude_counts[1:]) * math.log(2)


class _Descent:
    """The present message, its network's values, and its objective."""

    def __init__(
        self, network: SubspaceMlp, inputs: Tensor, labels: Tensor, message: Message, other_nats: float
    ) -> None:
        self.network, self.inputs, self.labels, self.other_nats = network, inputs, labels, other_nats
        self.columns = network.get_buffer("projection").T.contiguous()
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
            for symbol in range(-top, top + 1):
                old = self.symbols[index]
                if symbol == old:
                    continue
                change = self._value(symbol) - self._value(old)
                symbols = [*self.symbols[:index], symbol, *self.symbols[index + 1 :]]
                self._keep_if_better(self.values + change * self.columns[index], symbols, self.steps)
        for index in range(top):
            for change in (-2, -1, 1, 2):
                steps = list(self.steps)
                steps[index] = min(max(steps[index] + change, 0), num_magnitude_steps() - 1)
                self._keep_if_better(self._unfold(self.symbols, steps), self.symbols, steps)
        self.values = self._unfold(self.symbols, self.steps)
        return self.best < before

    def _value(self, symbol: int) -> float:
        return math.copysign(step_to_magnitude(self.steps[abs(symbol) - 1]), symbol) if symbol else 0.0

    def _unfold(self, symbols: list[int], steps: list[int]) -> Tensor:
        book = [0.0, *map(step_to_magnitude, steps)]
        coefficients = torch.tensor([math.copysign(book[abs(symbol)], symbol) for symbol in symbols])
        return self.network.get_buffer("start") + coefficients @ self.columns

    def _objective(self, values: Tensor, symbols: list[int]) -> float:
        scores = self.network.scores(self.inputs, values)
        num_errors = int((scores.argmax(dim=1) != self.labels).sum())
        counts = [0] * (len(self.steps) + 1)
        for symbol in symbols:
            counts[abs(symbol)] += 1
        bound = kl_bound(num_errors, len(self.labels), symbol_nats(counts) + self.other_nats)
        return bound + self.cross_entropy_weight * float(cross_entropy(scores, self.labels))

    def _keep_if_better(self, values: Tensor, symbols: list[int], steps: list[int]) -> None:
        objective = self._objective(values, symbols)
        if objective < self.best:
            self.best, self.values, self.symbols, self.steps = objective, values, symbols, steps


@torch.no_grad()
def refine(
    network: SubspaceMlp,
    inputs: Float[Tensor, "n features"],
    labels: Int[Tensor, " n"],
    message: Message,
    *,
    other_nats: float,
    max_sweeps: int,
) -> Message:
    """Lower the bound of a message by coordinate descent.

    Args:
        network: The message's subspace.
        inputs: Scaled training examples.
        labels: Their classes.
        message: Where to start.
        other_nats: What the bound pays beside the symbols: choices, codebook, ln(1/delta).
        max_sweeps: Sweeps over all coefficients at most, in each stage; a stage ends when one changes nothing.

    Returns:
        A message of the same kind, where no single change lowers the bound and a little cross-entropy any more, or
        the sweeps were used up.
    """
    descent = _Descent(network, inputs, labels, message, other_nats)
    for weight in CROSS_ENTROPY_WEIGHTS:
        descent.begin_stage(weight)
        for _ in range(max_sweeps):
            if not descent.sweep():
                break
    return replace(message, symbols=tuple(descent.symbols), magnitude_steps=tuple(descent.steps))
