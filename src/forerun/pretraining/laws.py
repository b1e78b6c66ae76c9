r"""Power laws :math:`L(x) = E + A x^{-\alpha}` from few points, and when these do not identify it.

The exponent alone is searched; given it, asymptote and coefficient are linear least squares (variable projection), so
there is no starting value that a result could depend on.

Reference:
    Besiroglu et al. 2024 (arXiv 2404.10102) on fits that stopped early and intervals that were too narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike, NDArray

from forerun.core.errors import ConfigError

EXPONENT_RANGE: Final = (0.02, 4.0)
"""Beyond it a law is a step or a logarithm; a best exponent at an end is not identified."""

_NUM_STARTS: Final = 192
_NUM_REFINEMENTS: Final = 60
_GOLDEN: Final = (5**0.5 - 1) / 2
_NUM_PARAMETERS: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """A fitted law.

    Attributes:
        asymptote: E, the loss in the limit.
        coefficient: A.
        exponent: alpha.
        residual_nats: Root mean square of what the law leaves over.
        problems: Why the asymptote is not identified by these points; empty if it is.
    """

    asymptote: float
    coefficient: float
    exponent: float
    residual_nats: float
    problems: tuple[str, ...] = ()

    @property
    def is_identified(self) -> bool:
        """Whether the points say what the asymptote is."""
        return not self.problems

    def at(self, x: float) -> float:
        """Return the loss at x."""
        return self.asymptote + self.coefficient * x**-self.exponent

    def inverse(self, loss: float) -> float:
        """Return the x at which the law reaches a loss; infinite at or below the asymptote."""
        if loss <= self.asymptote or self.coefficient <= 0:
            return float("inf")
        return float((self.coefficient / (loss - self.asymptote)) ** (1 / self.exponent))


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A value and how far replicates of it lie apart.

    Attributes:
        value: The estimate.
        low: Below it 2.5 % of the replicates.
        high: Above it 2.5 % of the replicates.
    """

    value: float
    low: float
    high: float


def interval_of(replicates: ArrayLike) -> Interval:
    """Return the first replicate, which is the estimate, with the 95 % percentile interval of the others.

    Args:
        replicates: The estimate, then its replicates; infinite ones count as beyond every finite one.
    """
    values = np.asarray(replicates, np.float64)
    low, high = np.quantile(values[1:], (0.025, 0.975), method="inverted_cdf")
    return Interval(value=float(values[0]), low=float(low), high=float(high))


def interval_json(interval: Interval) -> dict[str, float | None]:
    """Return an interval as JSON types; an infinite end is ``None``."""
    return {name: value if math.isfinite(value) else None for name, value in asdict(interval).items()}


def fit_power_law(x: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """Fit a law to points, by least squares over every exponent in :data:`EXPONENT_RANGE`.

    Args:
        x: Positive, distinct: parameters, members or tokens.
        losses: Loss at each, in nats.

    Raises:
        ConfigError: Fewer than 3 points, or one that is not positive or there twice.
    """
    x_P, y_P = _checked(x, losses)
    grid = _grid()
    errors = _squared_errors(x_P, y_P[None], grid)[:, 0]
    valleys = [
        place
        for place in range(len(grid))
        if errors[place] <= errors[max(place - 1, 0)] and errors[place] <= errors[min(place + 1, len(grid) - 1)]
    ]
    found = [_refine(x_P, y_P, grid, place) for place in valleys]
    exponent = min(found, key=lambda value: _squared_errors(x_P, y_P[None], np.array([value]))[0, 0])
    asymptote, coefficient = _linear_part(x_P, y_P, exponent)
    error = float(_squared_errors(x_P, y_P[None], np.array([exponent]))[0, 0])
    return PowerLaw(
        asymptote=asymptote,
        coefficient=coefficient,
        exponent=exponent,
        residual_nats=float(np.sqrt(error / len(y_P))),
        problems=tuple(_problems(len(y_P), asymptote, coefficient, exponent)),
    )


def fit_replicates(x: Sequence[float], losses_RP: ArrayLike) -> Float64[np.ndarray, "replicates 3"]:
    """Fit a law to each of many sets of losses at the same x, on a grid of exponents fine enough for intervals.

    Args:
        x: As for :func:`fit_power_law`.
        losses_RP: A row for each replicate.

    Returns:
        Asymptote, coefficient and exponent of each.

    Raises:
        ConfigError: As for :func:`fit_power_law`.
    """
    rows_RP = np.asarray(losses_RP, np.float64)
    x_P, _ = _checked(x, rows_RP[0])
    grid = _grid()
    best_R = grid[_squared_errors(x_P, rows_RP, grid).argmin(axis=0)]
    return np.array(
        [
            (*_linear_part(x_P, row_P, float(exponent)), exponent)
            for row_P, exponent in zip(rows_RP, best_R, strict=True)
        ]
    )


def leave_one_out(x: Sequence[float], losses: Sequence[float]) -> list[PowerLaw]:
    """Return the law without each of the points in turn; needs 4 points or more.

    Raises:
        ConfigError: As for :func:`fit_power_law`, of the points that are left.
    """
    return [
        fit_power_law([*x[:place], *x[place + 1 :]], [*losses[:place], *losses[place + 1 :]]) for place in range(len(x))
    ]


def reciprocal_limit(losses_RK: ArrayLike) -> Float64[np.ndarray, "replicates 2"]:
    r"""Return C and A of :math:`L(K) = C + A / K` for K = 1, 2, ... by least squares, for each row.

    The exponent is held at 1, which is what averaging independent members does to the variance term.

    Raises:
        ConfigError: Fewer than 2 members.
    """
    rows_RK = np.asarray(losses_RK, np.float64)
    if rows_RK.shape[1] < 2:
        raise ConfigError(f"{rows_RK.shape[1]} members: a limit in their number needs at least 2")
    counts = np.arange(1, rows_RK.shape[1] + 1)
    design = np.stack([np.ones(len(counts)), 1 / counts], axis=1)
    return rows_RK @ np.linalg.pinv(design).T


def _checked(x: Sequence[float], losses: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x_P, y_P = np.asarray(x, np.float64), np.asarray(losses, np.float64)
    if len(x_P) < _NUM_PARAMETERS or len(x_P) != len(y_P):
        raise ConfigError(f"{len(x_P)} points for {len(y_P)} losses: a law of 3 parameters needs at least 3 of both")
    if not (x_P > 0).all() or len(set(x_P.tolist())) < len(x_P) or not np.isfinite(y_P).all():
        raise ConfigError(f"x={x_P.tolist()}, losses={y_P.tolist()}: x must be positive and distinct, losses finite")
    return x_P, y_P


def _grid() -> NDArray[np.float64]:
    return np.geomspace(*EXPONENT_RANGE, _NUM_STARTS)


def _design(x_P: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    """Return the columns 1 and x^-exponent, x by its geometric mean for the sake of conditioning."""
    return np.stack([np.ones_like(x_P), (x_P / np.exp(np.log(x_P).mean())) ** -exponent], axis=1)


def _squared_errors(
    x_P: NDArray[np.float64], rows_RP: NDArray[np.float64], exponents: NDArray[np.float64]
) -> Float64[np.ndarray, "exponents replicates"]:
    errors = np.empty((len(exponents), len(rows_RP)))
    for place, exponent in enumerate(exponents):
        design = _design(x_P, float(exponent))
        left_over = rows_RP - rows_RP @ np.linalg.pinv(design).T @ design.T
        errors[place] = (left_over**2).sum(axis=1)
    return errors


def _linear_part(x_P: NDArray[np.float64], y_P: NDArray[np.float64], exponent: float) -> tuple[float, float]:
    asymptote, scaled = np.linalg.pinv(_design(x_P, exponent)) @ y_P
    return float(asymptote), float(scaled * np.exp(np.log(x_P).mean()) ** exponent)


def _refine(x_P: NDArray[np.float64], y_P: NDArray[np.float64], grid: NDArray[np.float64], place: int) -> float:
    """Return the least of one valley, by golden section in the logarithm of the exponent."""
    low, high = np.log(grid[max(place - 1, 0)]), np.log(grid[min(place + 1, len(grid) - 1)])

    def error(log_exponent: float) -> float:
        return float(_squared_errors(x_P, y_P[None], np.exp([log_exponent]))[0, 0])

    for _ in range(_NUM_REFINEMENTS):
        inner, outer = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if error(inner) <= error(outer):
            high = outer
        else:
            low = inner
    return float(np.exp((low + high) / 2))


def _problems(num_points: int, asymptote: float, coefficient: float, exponent: float) -> list[str]:
    problems: list[str] = []
    if num_points <= _NUM_PARAMETERS:
        problems.append(f"{num_points} points for {_NUM_PARAMETERS} parameters")
    if coefficient <= 0:
        problems.append("the loss does not fall")
    if exponent < EXPONENT_RANGE[0] * 1.05 or exponent > EXPONENT_RANGE[1] / 1.05:
        problems.append(f"the exponent is at the end of its range, {exponent:.2f}")
    if asymptote <= 0:
        problems.append(f"the limit is {asymptote:.2f}, and a loss is above 0")
    return problems
