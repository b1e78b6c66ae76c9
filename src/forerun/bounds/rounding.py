r"""Rounding coefficients together: what one rounding breaks, the others mend.

Rounded one by one, a few hundred coefficients leave little of a network. Here the scores are linearised in the
coefficients, which makes the cross-entropy a quadratic form with the Gauss-Newton matrix

.. math:: H = \frac{1}{n} \sum_i J_i^\top (\mathrm{diag}(p_i) - p_i p_i^\top) J_i,

and the symbols descend on that form plus the length of the message: of all changes of one symbol the best is made until
none helps. Then the scores are linearised anew, at the rounded point. The idea is that of optimal brain surgeon, with a
code length in place of pruning.

Reference:
    Hassibi, Stork, "Second order derivatives for network pruning", NeurIPS 1992;
    Frantar, Singh, Alistarh, "Optimal Brain Compression", NeurIPS 2022, arXiv 2208.11580.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from forerun.bounds.codebook import count_magnitudes, signed_levels, symbol_nats, symbol_values
from forerun.nn.subspace import Subspace

_STEP: Final = 1e-2
_FIRST_DAMPING: Final = 1e-3
_MOVES_PER_COEFFICIENT: Final = 20
_LEAST_GAIN: Final = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class Quadratic:
    """The cross-entropy near a point: gradient and Gauss-Newton matrix in the coefficients."""

    centre: Float[Tensor, " dim"]
    gradient: Float[Tensor, " dim"]
    curvature: Float[Tensor, "dim dim"]


@torch.no_grad()
def expand_quadratic(
    network: Subspace, inputs: Tensor, labels: Int[Tensor, " n"], coefficients: Float[Tensor, " dim"]
) -> Quadratic:
    """Return the quadratic form at a point; the Jacobian is taken by forward differences.

    Args:
        network: The subspace.
        inputs: Prepared examples; a few thousand are enough.
        labels: Their classes.
        coefficients: The point.
    """
    values = network.values(coefficients)
    scores = network.scores(inputs, values)
    shifted = (values + _STEP * network.column(index) for index in range(network.dim))
    jacobian = torch.stack([(network.scores(inputs, moved) - scores) / _STEP for moved in shifted])
    chances = torch.softmax(scores, dim=1)
    residual = chances.clone()
    residual[torch.arange(len(labels)), labels] -= 1
    weighted = (jacobian * chances.sqrt()).flatten(1)
    means = (jacobian * chances).sum(dim=2)
    return Quadratic(
        centre=coefficients.clone(),
        gradient=(jacobian * residual).sum(dim=(1, 2)) / len(labels),
        curvature=(weighted @ weighted.T - means @ means.T) / len(labels),
    )


def _rate_changes(counts: list[int]) -> Float[Tensor, "classes classes"]:
    """Return by how many nats the message grows when a symbol of one magnitude class becomes one of another."""
    before, size = symbol_nats(counts), len(counts)
    changes = torch.zeros(size, size)
    for old in range(size):
        for new in range(size):
            if counts[old] and new != old:
                moved = list(counts)
                moved[old] -= 1
                moved[new] += 1
                changes[old, new] = symbol_nats(moved) - before
    return changes


def descend_quadratic(
    form: Quadratic,
    symbols: Int[Tensor, " dim"],
    steps: list[int],
    *,
    nat_weight: float,
    damping: float,
    tables: Int[Tensor, " dim"] | None = None,
) -> Int[Tensor, " dim"]:
    """Change symbols one at a time, the best change first, until none lowers the form plus the message's length.

    Args:
        form: The cross-entropy.
        symbols: Where to start, -m to m.
        steps: The m magnitudes.
        nat_weight: Cross-entropy that a nat of the message is worth.
        damping: Added to the curvature's diagonal: keeps the point where the form is true.
        tables: Which table of counts codes each symbol; one for all where not given.
    """
    levels, top = signed_levels(steps), len(steps)
    curvature = form.curvature + damping * torch.eye(len(symbols))
    places, values = symbols + top, symbol_values(symbols, steps)
    slope = form.gradient + curvature @ (values - form.centre)
    tables = torch.zeros(len(symbols), dtype=torch.long) if tables is None else tables
    counts = [count_magnitudes(symbols[tables == table].tolist(), top) for table in range(int(tables.max()) + 1)]
    all_rates = torch.stack([_rate_changes(table) for table in counts])
    classes_of_levels = (torch.arange(len(levels)) - top).abs()
    for _ in range(_MOVES_PER_COEFFICIENT * len(symbols)):
        shift = levels[None, :] - values[:, None]
        rates = all_rates[tables, (places - top).abs()][:, classes_of_levels]
        change = slope[:, None] * shift + curvature.diagonal()[:, None] * shift**2 / 2 + nat_weight * rates
        index, level = divmod(int(change.argmin()), len(levels))
        if float(change[index, level]) > -_LEAST_GAIN:
            break
        table = int(tables[index])
        counts[table][abs(int(places[index]) - top)] -= 1
        counts[table][abs(level - top)] += 1
        all_rates[table] = _rate_changes(counts[table])
        slope = slope + curvature[index] * shift[index, level]
        places[index], values[index] = level, levels[level]
    return places - top


@torch.no_grad()
def round_together(
    network: Subspace,
    inputs: Tensor,
    labels: Int[Tensor, " n"],
    coefficients: Float[Tensor, " dim"],
    steps: list[int],
    *,
    nat_weight: float,
    max_rounds: int,
) -> Int[Tensor, " dim"]:
    """Round coefficients to symbols.

    Args:
        network: The subspace.
        inputs: Prepared examples.
        labels: Their classes.
        coefficients: Trained, not rounded.
        steps: The magnitudes.
        nat_weight: Cross-entropy that a nat of the message is worth.
        max_rounds: Linearisations at most; it ends early when one brings nothing.

    Returns:
        The symbols with the least measured cross-entropy and length.
    """

    def objective(symbols: Tensor) -> float:
        loss = cross_entropy(network(inputs, symbol_values(symbols, steps)), labels)
        return float(loss) + nat_weight * symbol_nats(count_magnitudes(symbols.tolist(), len(steps)))

    symbols = (coefficients[:, None] - signed_levels(steps)[None, :]).abs().argmin(dim=1) - len(steps)
    best, centre, damping = objective(symbols), coefficients, _FIRST_DAMPING
    for _ in range(max_rounds):
        form = expand_quadratic(network, inputs, labels, centre)
        for _ in range(4):
            changed = descend_quadratic(form, symbols, steps, nat_weight=nat_weight, damping=damping)
            found = objective(changed)
            if found < best:
                break
            damping *= 4
        else:
            break
        symbols, best, damping = changed, found, damping / 2
        centre = symbol_values(symbols, steps)
    return symbols
