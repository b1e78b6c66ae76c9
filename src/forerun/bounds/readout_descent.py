"""Descent on the bound of a linear readout: a change of one weight moves the scores of one class only."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from forerun.bounds.codebook import count_magnitudes, signed_levels, symbol_nats, symbol_values
from forerun.bounds.pac_bayes import kl_bound
from forerun.bounds.refine import CROSS_ENTROPY_WEIGHTS


class CodedReadout:
    """A readout in symbols, and the objective: its bound, and a little of its cross-entropy.

    Args:
        columns: Features of all training examples, and a column of ones.
        labels: Their classes.
        symbols: Where to start, ``[classes, columns]``.
        steps: Magnitudes.
        tables: Of counts, for each symbol.
        other_nats: What the bound pays beside the symbols: choices, codebook, ln(1/delta).
    """

    def __init__(
        self,
        columns: Float[Tensor, "n columns"],
        labels: Int[Tensor, " n"],
        symbols: Int[Tensor, "classes columns"],
        steps: list[int],
        tables: Int[Tensor, "classes columns"],
        other_nats: float,
    ) -> None:
        self.columns, self.labels, self.tables = columns, labels, tables
        self.symbols, self.steps = symbols.clone(), steps
        self.levels, self.top = signed_levels(steps), len(steps)
        self.scores = columns @ symbol_values(symbols, steps).T
        self.counts = [
            count_magnitudes(symbols[tables == table].tolist(), self.top) for table in range(int(tables.max()) + 1)
        ]
        self.other_nats = other_nats
        self.best = self._objective(self.scores, self.counts)

    def _objective(self, scores: Tensor, counts: list[list[int]]) -> float:
        num_errors = int((scores.argmax(dim=1) != self.labels).sum())
        nats = sum(map(symbol_nats, counts)) + self.other_nats
        loss = float(cross_entropy(scores, self.labels))
        return kl_bound(num_errors, len(self.labels), nats) + CROSS_ENTROPY_WEIGHTS[1] / 2 * loss

    def _rank_changes(self, nat_weight: float, num_trials: int) -> list[tuple[int, int, int]]:
        """Return (class, column, level) of the changes that promise most, by slope, curvature and length."""
        chances = torch.softmax(self.scores, dim=1)
        curvature = (chances * (1 - chances)).T @ self.columns.square()
        chances[torch.arange(len(self.labels)), self.labels] -= 1
        slope = chances.T @ self.columns
        shift = self.levels - self.levels[self.symbols + self.top][..., None]
        counts = torch.tensor(self.counts) + 0.5
        prices = (counts.sum(dim=1, keepdim=True) / counts).log()
        prices[:, 1:] += torch.tensor(2.0).log()
        classes = (torch.arange(len(self.levels)) - self.top).abs()
        rates = prices[self.tables][..., classes] - prices[self.tables, self.symbols.abs()][..., None]
        change = slope[..., None] * shift + curvature[..., None] * shift**2 / 2 + nat_weight * rates
        change[shift == 0] = float("inf")
        size, num_levels = self.columns.shape[1], len(self.levels)
        order = change.flatten().argsort()[:num_trials].tolist()
        return [(place // (size * num_levels), place // num_levels % size, place % num_levels) for place in order]

    def _try_change(self, row: int, column: int, level: int) -> bool:
        """Make one change if the objective falls; returns whether it did."""
        old = int(self.symbols[row, column])
        scores, counts = self.scores.clone(), [list(table) for table in self.counts]
        scores[:, row] += (self.levels[level] - self.levels[old + self.top]) * self.columns[:, column]
        table = counts[int(self.tables[row, column])]
        table[abs(old)] -= 1
        table[abs(level - self.top)] += 1
        objective = self._objective(scores, counts)
        if objective >= self.best:
            return False
        self.best, self.scores, self.counts = objective, scores, counts
        self.symbols[row, column] = level - self.top
        return True

    @torch.no_grad()
    def descend(self, *, nat_weight: float, num_passes: int, num_trials: int) -> None:
        """Change one symbol at a time while that lowers the objective.

        Args:
            nat_weight: For the order of trials: cross-entropy that a nat of the message is worth.
            num_passes: At most; a pass that changes nothing is the last.
            num_trials: Changes that a pass tries.
        """
        for _ in range(num_passes):
            changes = self._rank_changes(nat_weight, num_trials)
            if not sum(self._try_change(*change) for change in changes):
                break
