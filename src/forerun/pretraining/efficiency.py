"""Data efficiency: how much text the standard recipe needs to reach a loss, seen and extrapolated kept apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forerun.core.errors import ConfigError
from forerun.pretraining.laws import Interval, fit_power_law, fit_replicates, interval_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Multiplier:
    """How many times the text the standard recipe needs.

    Attributes:
        observed: Between losses that the standard recipe was seen to reach; an end is infinite where it was seen to
            reach none as low, and a value is then unknown but for its lower end. ``None`` if the loss itself is no
            observation but a limit.
        extrapolated: By a law in the standard recipe's text; ``None`` where it is not identified.
        most_seen: The largest multiple of the text that the standard recipe was given.
        problems: Why there is nothing extrapolated.
    """

    observed: Interval | None
    extrapolated: Interval | None
    most_seen: float
    problems: tuple[str, ...] = ()


def data_multiplier(
    standard_tokens: Sequence[int],
    standard_losses_DR: Sequence[np.ndarray],
    losses_R: np.ndarray,
    *,
    is_limit: bool = False,
) -> Multiplier:
    """Compare a loss with the standard recipe's on more text.

    Args:
        standard_tokens: Unique tokens, rising; the first is what the compared method had.
        standard_losses_DR: The standard recipe's best loss on each, an estimate and its replicates.
        losses_R: The method's loss, with replicates of the same draws.
        is_limit: Whether the loss is the limit of a law, which nobody observed.

    Raises:
        ConfigError: The tokens do not rise, or there are not as many losses.
    """
    if len(standard_tokens) != len(standard_losses_DR) or list(standard_tokens) != sorted(set(standard_tokens)):
        raise ConfigError(f"standard_tokens={list(standard_tokens)}: must rise, with a loss for each")
    first = standard_tokens[0]
    standard_RD = np.stack(list(standard_losses_DR), axis=1)
    observed = None
    if not is_limit:
        observed = interval_of(
            [
                interpolated_tokens(standard_tokens, row, loss) / first
                for row, loss in zip(standard_RD, losses_R, strict=True)
            ]
        )
    most_seen = standard_tokens[-1] / first
    if len(standard_tokens) < 3:
        problems: tuple[str, ...] = (f"{len(standard_tokens)} amounts of text for 3 parameters",)
        return Multiplier(observed=observed, extrapolated=None, most_seen=most_seen, problems=problems)
    law = fit_power_law(standard_tokens, standard_RD[0])
    if not law.is_identified:
        return Multiplier(observed=observed, extrapolated=None, most_seen=most_seen, problems=law.problems)
    asymptotes, coefficients, exponents = fit_replicates(standard_tokens, standard_RD).T
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        tokens_R = (coefficients / (losses_R - asymptotes)) ** (1 / exponents)
    tokens_R = np.where((losses_R > asymptotes) & (coefficients > 0), tokens_R, np.inf)
    tokens_R[0] = law.inverse(float(losses_R[0]))
    return Multiplier(
        observed=observed, extrapolated=interval_of(tokens_R / first), most_seen=most_seen, problems=law.problems
    )


def interpolated_tokens(tokens: Sequence[int], losses: Sequence[float] | np.ndarray, loss: float) -> float:
    """Return the text at which a falling curve reaches a loss, on straight lines in the logarithm of the text.

    Args:
        tokens: Rising.
        losses: At each; a rise counts as a plateau.
        loss: What to reach.

    Returns:
        Tokens; infinite below the curve, and the first entry above it.
    """
    falling = np.minimum.accumulate(np.asarray(losses, np.float64))
    if loss < falling[-1]:
        return float("inf")
    return float(np.exp(np.interp(-loss, -falling, np.log(np.asarray(tokens, np.float64)))))
