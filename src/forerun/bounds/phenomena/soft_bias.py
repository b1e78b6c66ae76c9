"""Soft inductive biases: prefer the simple, exclude nothing. Polynomials by order, fitted and certified."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.polynomial.legendre import legvander

from forerun.bounds.pac_bayes import binomial_tail_bound, kl_bound

_DEGREE, _NUM_POINTS, _NUM_SEEDS = 150, 20, 20
_CERTIFIED_DEGREE, _CERTIFIED_POINTS, _DELTA = 20, 600, 0.05
_PENALTY = 1e-3
_VALUES = np.array([0.0, -1.0, 1.0, -0.5, 0.5, -2.0, 2.0, -4.0, 4.0])
_NUM_SWEEPS = 4
_LABEL_NOISE = 0.05

TARGETS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "simple": lambda x: x**2 - 0.3 + 0.2 * x,
    "complex": lambda x: np.sin(9 * x) + 0.3 * x,
}
"""What is to be learned: a parabola, and a curve that changes sign six times."""


def measure_soft_bias(seed: int = 0, num_certified: int = 5) -> dict[str, Any]:
    """Compare hard limits of the order with a preference for low orders.

    Args:
        seed: Of points and labels.
        num_certified: Samples that each certified mean is over.

    Returns:
        ``fits``: median test error (root mean square) of polynomials fitted to 20 points, by target and bias: orders
        up to a hard limit, the least norm of 150 orders, and 150 orders with a penalty that grows with the order.
        ``certified``: mean certified bound and code length of classifiers by the sign of a polynomial, by target and
        prior: hard limits, which code each order up to the limit alike, and the soft one, in which order j is used with
        probability 1 / (j + 2).
    """
    return {
        "degree": _DEGREE, "num_points": _NUM_POINTS, "fits": _fits(seed),
        "certified_degree": _CERTIFIED_DEGREE, "certified_points": _CERTIFIED_POINTS,
        "certified": _certify(seed, num_certified),
    }  # fmt: skip


def _fits(seed: int) -> list[dict[str, Any]]:
    biases = {
        "3 (hard)": (3, 0.0, 0.0), "15 (hard)": (15, 0.0, 0.0),
        "150, plain": (_DEGREE, 0.0, 0.0), "150, soft": (_DEGREE, 1.5, _PENALTY),
    }  # fmt: skip
    grid = np.linspace(-1, 1, 401)
    rows = []
    for target, curve in TARGETS.items():
        for name, (degree, power, penalty) in biases.items():
            errors = []
            for shift in range(_NUM_SEEDS):
                source = np.random.default_rng(seed + shift)
                points = source.uniform(-1, 1, _NUM_POINTS)
                values = curve(points) + 0.05 * source.normal(size=_NUM_POINTS)
                weights = (1.0 + np.arange(degree + 1)) ** -power
                rows_and_penalty = np.vstack([legvander(points, degree) * weights, penalty**0.5 * np.eye(degree + 1)])
                targets = np.concatenate([values, np.zeros(degree + 1)])
                solution = weights * np.linalg.lstsq(rows_and_penalty, targets, rcond=1e-10)[0]
                errors.append(math.sqrt(float(((legvander(grid, degree) @ solution - curve(grid)) ** 2).mean())))
            rows.append({"target": target, "bias": name, "median_test_rmse": float(np.median(errors))})
    return rows


def _order_bits(prior: str, limit: int) -> Float[np.ndarray, "orders values"]:
    """Return the bits of each value at each order; a hard limit makes values other than zero beyond it impossible."""
    orders = np.arange(_CERTIFIED_DEGREE + 1)
    bits = np.empty((len(orders), len(_VALUES)))
    if prior == "soft":
        used = 1 / (orders + 2)
        bits[:, 0] = -np.log2(1 - used)
        bits[:, 1:] = (-np.log2(used) + math.log2(len(_VALUES) - 1))[:, None]
    else:
        bits[:] = math.log2(len(_VALUES))
        bits[limit + 1 :, 0], bits[limit + 1 :, 1:] = 0.0, math.inf
    return bits


def _certify(seed: int, num_samples: int) -> list[dict[str, Any]]:
    priors = {"degree 2 (hard)": ("hard", 2), "degree 20 (hard)": ("hard", _CERTIFIED_DEGREE), "soft": ("soft", 0)}
    rows = []
    for target, curve in TARGETS.items():
        for name, (prior, limit) in priors.items():
            bits = _order_bits(prior, limit)
            found = []
            for shift in range(num_samples):
                source = np.random.default_rng(seed + 50 + shift)
                points = source.uniform(-1, 1, _CERTIFIED_POINTS)
                flips = source.random(_CERTIFIED_POINTS) < _LABEL_NOISE
                found.append(_descend(points, np.where(flips, -1, 1) * np.sign(curve(points)), bits))
            bounds, lengths, errors = np.array(found).mean(axis=0)
            rows.append({
                "target": target, "prior": name, "bound": float(bounds), "bits": float(lengths),
                "training_error": float(errors),
            })  # fmt: skip
    return rows


def _descend(points: np.ndarray, signs: np.ndarray, bits: np.ndarray) -> tuple[float, float, float]:
    """Return bound, bits and training error of a classifier found by descent on the bound, one order at a time."""
    basis, num_points = legvander(points, _CERTIFIED_DEGREE), len(points)
    chosen = np.zeros(len(bits), dtype=int)
    scores = np.zeros(num_points)

    def bound(scores: np.ndarray, length: float) -> float:
        num_errors = int((scores * signs <= 0).sum())
        return kl_bound(num_errors, num_points, length * math.log(2) - math.log(_DELTA))

    length = float(bits[:, 0].sum())
    best = bound(scores, length)
    for _ in range(_NUM_SWEEPS):
        before = best
        for order in range(len(bits)):
            for value in range(len(_VALUES)):
                changed = length + bits[order, value] - bits[order, chosen[order]]
                if value == chosen[order] or not math.isfinite(changed):
                    continue
                moved = scores + (_VALUES[value] - _VALUES[chosen[order]]) * basis[:, order]
                candidate = bound(moved, changed)
                if candidate < best:
                    best, scores, length, chosen[order] = candidate, moved, changed, value
        if best == before:
            break
    num_errors = int((scores * signs <= 0).sum())
    complexity = length * math.log(2) - math.log(_DELTA)
    return binomial_tail_bound(num_errors, num_points, complexity), length, num_errors / num_points
