"""Fits the model of a language certificate, and rounds it so that bits are spent where they shorten the text's code.

All of this is free: the bound holds for every message at once, so nobody asks how the message was found.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
from jaxtyping import Float64, UInt8

from forerun.bounds.language.grid import LanguageGrid
from forerun.bounds.language.message import NUM_SETS, LanguageMessage
from forerun.bounds.language.verifier import (
    CONTEXTS,
    FIRST_WEIGHT,
    MAX_STEPS,
    SELECTORS,
    document_features,
    first_votes,
    state_table,
)
from forerun.core.errors import ConfigError

_NUM_CONTEXTS: Final = len(CONTEXTS)
_FIRST_CURVATURE: Final = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """How to fit and round.

    Attributes:
        num_bytes: Of the text to fit on, whole documents from its start; more takes longer and fits better.
        learning_rates: Of each pass of AdaGrad over it.
        bit_price: Bits per byte of text that a bit of the message must save to be sent.
        smoothing: Place in the grid's list.
        weight_step: Place in the grid's list.
        vote_step: Place in the grid's list.
        bias_step: Place in the grid's list.
        by_document: Whether each document counts alike, or each byte.
    """

    num_bytes: int = 1_000_000
    learning_rates: tuple[float, ...] = (0.05, 0.02, 0.01)
    bit_price: float = 5e-6
    smoothing: int = 4
    weight_step: int = 2
    vote_step: int = 2
    bias_step: int = 2
    by_document: bool = False

    def __post_init__(self) -> None:
        if self.num_bytes < 1 or not self.learning_rates or self.bit_price < 0:
            raise ConfigError(
                f"num_bytes={self.num_bytes}, learning_rates={self.learning_rates}, bit_price={self.bit_price}: need "
                "at least a byte, a pass, and a price that is not negative"
            )


@numba.njit(cache=True)
def _pass_over(
    states, selectors, nodes, bits, sizes, weights, votes, biases, sums, rates, importance
):  # pragma: no cover - compiled
    """Go over one document; returns its loss in nats. Where a rate is 0 the sum of curvature is kept instead."""
    sum_w, sum_v, sum_b = sums
    rate_w, rate_v, rate_b = rates
    num_contexts = states.shape[0]
    rows = np.zeros(len(sizes) + 1, np.int64)
    weight, vote = np.zeros(num_contexts), np.zeros(num_contexts)
    total = 0.0
    for place in range(len(bits)):
        rest, start = selectors[place], len(weights)
        for index in range(len(sizes) - 1, -1, -1):
            start -= sizes[index]
            rows[index + 1] = start + rest % sizes[index]
            rest //= sizes[index]
        logit = biases[nodes[place]]
        for k in range(num_contexts):
            state = states[k, place]
            if state != 0:
                weight[k] = 0.0
                for row in rows:
                    weight[k] += weights[row, k]
                vote[k] = votes[k, state] if state > 0 else -votes[k, -state]
                logit += weight[k] * vote[k]
        p = 1 / (1 + np.exp(-min(max(logit, -12.0), 12.0)))
        total -= np.log(p if bits[place] else 1 - p)
        slope = importance * (bits[place] - p)
        bend = importance * p * (1 - p)
        node = nodes[place]
        if rate_b > 0:
            sum_b[node] += slope * slope
            biases[node] += rate_b * slope / np.sqrt(sum_b[node])
        else:
            sum_b[node] += bend
        for k in range(num_contexts):
            state = abs(states[k, place])
            if state != 0:
                sign = 1.0 if states[k, place] > 0 else -1.0
                if rate_v > 0:
                    step = slope * weight[k]
                    sum_v[k, state] += step * step
                    votes[k, state] += sign * rate_v * step / np.sqrt(sum_v[k, state])
                else:
                    sum_v[k, state] += bend * weight[k] * weight[k]
                for row in rows:
                    if rate_w > 0:
                        step = slope * vote[k]
                        sum_w[row, k] += step * step
                        weights[row, k] += rate_w * step / np.sqrt(sum_w[row, k])
                    else:
                        sum_w[row, k] += bend * vote[k] * vote[k]
    return total


class _Fit:
    """The parameters in fitting: three arrays of floats, of which entries can be fixed."""

    def __init__(self, texts: list[UInt8[np.ndarray, " bytes"]], *, by_document: bool) -> None:
        self.weights = np.zeros((NUM_SETS, _NUM_CONTEXTS))
        self.weights[0] = FIRST_WEIGHT / 256
        self.votes = np.tile(first_votes() / 64, (_NUM_CONTEXTS, 1))
        self.biases = np.zeros(256)
        self.fixed = [np.zeros(values.shape, dtype=bool) for values in self.values]
        self._is_done = [False, False, False]
        table = state_table()
        self._features = [document_features(text, table)[:4] for text in texts]
        lengths = np.array([len(text) for text in texts])
        self._importance = lengths.mean() / lengths if by_document else np.ones(len(texts))
        self._num_bytes = int(lengths.sum())
        self.sums = [np.full(values.shape, _FIRST_CURVATURE) for values in self.values]

    @property
    def values(self) -> list[np.ndarray]:
        return [self.weights, self.votes, self.biases]

    def descend(self, rate: float, *, with_votes: bool = True) -> float:
        """Go over all documents once, with what is not fixed free to move; returns the loss in bits per byte."""
        wanted = (True, with_votes, with_votes)
        rates = [rate * float(want and not done) for want, done in zip(wanted, self._is_done, strict=True)]
        return self._go_over(self.sums, rates)

    def curvature(self) -> list[np.ndarray]:
        """Return the diagonal of the Fisher information of each array, in nats over the text."""
        sums = [np.zeros(values.shape) for values in self.values]
        self._go_over(sums, [0.0, 0.0, 0.0])
        return sums

    def finish(self, index: int, values: np.ndarray) -> None:
        """Fix one array at these values."""
        self.values[index][:] = values
        self._is_done[index] = True

    def _go_over(self, sums: list[np.ndarray], rates: list[float]) -> float:
        held = [values.copy() for values in self.values]
        scratch = [item if rate > 0 else np.zeros(item.shape) for item, rate in zip(sums, rates, strict=True)]
        scratch = sums if not any(rates) else scratch
        total = 0.0
        for (states, selectors, nodes, bits), importance in zip(self._features, self._importance, strict=True):
            total += importance * _pass_over(
                states, selectors, nodes, bits, SELECTORS, self.weights, self.votes, self.biases,
                tuple(scratch), tuple(rates), importance,
            )  # fmt: skip
            for values, before, fixed in zip(self.values, held, self.fixed, strict=True):
                values[fixed] = before[fixed]
        return total / np.log(2) / self._num_bytes


def fit_message(
    texts: list[UInt8[np.ndarray, " bytes"]],
    grid: LanguageGrid,
    config: FitConfig,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> LanguageMessage:
    """Fit weights, votes and biases to text, then round them.

    Rounding minimises, entry by entry, the loss by its second-order expansion plus the price of the bits. A first
    rounding says which entries are worth sending at all; the others stay at their start while the rest is fitted
    anew. Then one array after the other is rounded for good, and those still free make up for it.

    Args:
        texts: Documents; those at the start that hold ``config.num_bytes`` are used.
        grid: The options.
        config: How to fit.
        report: Told a line about each pass.
    """
    ends = np.cumsum([len(text) for text in texts])
    used = texts[: int(np.searchsorted(ends, config.num_bytes)) + 1]
    fit = _Fit(used, by_document=config.by_document)
    starts = [values.copy() for values in fit.values]
    units = (
        grid.weight_steps[config.weight_step] / 256,
        grid.vote_steps[config.vote_step] / 64,
        grid.bias_steps[config.bias_step] / 64,
    )
    price = config.bit_price * sum(map(len, used)) * np.log(2)

    def steps_of(index: int, curvature: list[np.ndarray]) -> np.ndarray:
        away = (fit.values[index] - starts[index]) / units[index]
        return _round(away, curvature[index] * units[index] ** 2, price)

    for number, rate in enumerate(config.learning_rates):
        bits = fit.descend(rate, with_votes=number > 0)
        report(f"pass {number + 1}: {bits:.4f} bits per byte")
    curvature = fit.curvature()
    for index, fixed in enumerate(fit.fixed):
        fixed[:] = steps_of(index, curvature) == 0
        fit.values[index][fixed] = starts[index][fixed]
    found: list[np.ndarray] = []
    for index in range(3):
        bits = fit.descend(config.learning_rates[-1])
        found.append(steps_of(index, fit.curvature()))
        fit.finish(index, starts[index] + units[index] * found[index])
        report(f"rounding {index + 1} of 3: {bits:.4f} bits per byte, {np.count_nonzero(found[index])} entries sent")
    return LanguageMessage(
        smoothing=config.smoothing,
        weight_step=config.weight_step,
        vote_step=config.vote_step,
        bias_step=config.bias_step,
        weights=found[0],
        votes=found[1][:, 1:],
        biases=found[2][1:],
    )


def _round(away: Float64[np.ndarray, "*shape"], curvature: Float64[np.ndarray, "*shape"], price: float) -> np.ndarray:
    """Return whole steps that minimise curvature / 2 * error**2 + price * bits, entry by entry.

    The bits are those of the static code that fits the steps of the round before; two rounds suffice.
    """
    candidates = np.stack([np.zeros(away.shape), np.trunc(away), np.trunc(away) + np.sign(away)])
    candidates = np.clip(candidates, -MAX_STEPS, MAX_STEPS)
    chosen = np.round(away)
    for _ in range(3):
        share = (np.count_nonzero(chosen) + 0.5) / (chosen.size + 1)
        mean_size = max(1.1, np.abs(chosen).sum() / max(1, np.count_nonzero(chosen)))
        more = 1 - 1 / mean_size
        sent = 1 - np.log2(share) - np.log2(1 - more) - (np.abs(candidates) - 1) * np.log2(more)
        bits = np.where(candidates == 0, -np.log2(1 - share), sent)
        cost = curvature / 2 * (candidates - away) ** 2 + price * bits
        chosen = np.take_along_axis(candidates, cost.argmin(axis=0)[None], axis=0)[0]
    return chosen.astype(np.int64)
