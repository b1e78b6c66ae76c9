"""Returns of few episodes, summed up so that one bad episode does not decide: interquartile means with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_NUM_REPLICATES = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A value with its 95% bootstrap interval.

    Attributes:
        value: The interquartile mean.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """Return the three numbers by name."""
        return {"value": self.value, "low": self.low, "high": self.high}


def interquartile_mean(values: Float[np.ndarray, "*batch samples"]) -> Float[np.ndarray, "*batch"]:
    """Return the mean of the middle half of the samples, those at the quarters counted in part."""
    ordered = np.sort(values, axis=-1)
    count = values.shape[-1]
    edges = np.arange(count + 1) / count
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return ordered @ weights / weights.sum()


def estimate(groups: Sequence[Float[np.ndarray, " samples"]], *, seed: int = 0) -> Estimate:
    """Return the interquartile mean of all samples, and a percentile interval.

    Args:
        groups: Returns, one array for each training seed, all of one length. Seeds are drawn anew and samples within
            them, so that the interval has both kinds of chance; with one group it is over samples alone.
        seed: Of the bootstrap.

    Reference:
        Agarwal et al. 2021 (arXiv 2108.13264) for the interquartile mean of runs.
    """
    source = np.random.default_rng(seed)
    table = np.stack([np.asarray(group, dtype=np.float64) for group in groups])
    num_groups, count = table.shape
    chosen = source.integers(0, num_groups, (_NUM_REPLICATES, num_groups, 1))
    drawn = table[chosen, source.integers(0, count, (_NUM_REPLICATES, num_groups, count))]
    low, high = np.quantile(interquartile_mean(drawn.reshape(_NUM_REPLICATES, -1)), [0.025, 0.975])
    return Estimate(value=float(interquartile_mean(table.reshape(-1))), low=float(low), high=float(high))


def paired_difference(
    first: Sequence[Float[np.ndarray, " samples"]], second: Sequence[Float[np.ndarray, " samples"]]
) -> Estimate:
    """Return by how much the first returns exceed the second, start by start; see :func:`estimate`.

    Starts of very different worth widen the intervals of both, but not that of their differences.

    Args:
        first: Returns, one array for each training seed.
        second: Of the same seeds, episodes with the same starts in the same order.
    """
    return estimate([np.asarray(ours) - np.asarray(theirs) for ours, theirs in zip(first, second, strict=True)])
