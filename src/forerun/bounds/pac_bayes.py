r"""Upper bounds on the error probability of one fixed classifier that was chosen after seeing the data.

The setting: n independent examples; a prior P over countably many classifiers, fixed before the data; a classifier h
with k errors. Each bound takes the *complexity* :math:`c = \ln(1/P(h)) + \ln(1/\delta)` in nats and holds for all h
at once with probability at least :math:`1 - \delta` over the examples, because Boole's inequality gives h the share
:math:`\delta P(h)` of the failure probability.

**Choosing among the bounds is free.** For a single classifier they are nested: where the binomial bound holds, all
hold. With p the binomial bound, Chernoff's inequality gives :math:`\mathrm{kl}(k/n \| p) \le c/n`, so the kl bound is
at least p; Catoni's is the kl bound's linear relaxation at one inverse temperature, McAllester's follows by Pinsker.
They fail on one event, of probability delta, and the least of them is always the binomial one.

Reference:
    Langford, "Tutorial on Practical Prediction Theory for Classification", JMLR 6 (2005), sections 3 and 4;
    Catoni, "PAC-Bayesian Supervised Classification" (2007, arXiv 0712.0248), theorem 1.2.6;
    McAllester, "PAC-Bayesian Model Averaging" (1999).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from jaxtyping import Float

from forerun.core.errors import ConfigError

NUM_CATONI_TEMPERATURES: Final = 64
"""Inverse temperatures n / 2**j that :func:`catoni_bound` tries, for j in steps of 1/4; it pays ln of their number."""

NUM_BERNSTEIN_RATES: Final = 20
"""Rates 0.95 / 2**(j / 2) that :func:`empirical_bernstein_bound` tries; it pays ln of their number."""

_SLACK_NATS: Final = 1e-9
"""Added to the complexity, against rounding in the tail: errs on the side of a larger bound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RiskBounds:
    """Every bound for one classifier, as error probabilities; :attr:`tightest` is the one to quote."""

    binomial: float
    kl: float
    catoni: float
    mcallester: float

    @property
    def tightest(self) -> float:
        """The least of them; free of charge (see the module)."""
        return min(self.binomial, self.kl, self.catoni, self.mcallester)

    @property
    def tightest_name(self) -> str:
        """Which one that is."""
        values = asdict(self)
        return min(values, key=lambda name: values[name])


def complexity_nats(*, code_length_bits: float, delta: float) -> float:
    """Return ln(1 / P(h)) + ln(1 / delta).

    Args:
        code_length_bits: -log2 P(h), at least 0.
        delta: Failure probability, inside (0, 1).

    Raises:
        ConfigError: A value is out of range.
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta={delta}: must lie strictly between 0 and 1, such as 0.05")
    if not 0 <= code_length_bits < math.inf:
        raise ConfigError(f"code_length_bits={code_length_bits}: must be finite and at least 0")
    return code_length_bits * math.log(2) - math.log(delta)


def risk_bounds(*, num_errors: int, num_samples: int, code_length_bits: float, delta: float) -> RiskBounds:
    """Return all bounds for a classifier with ``num_errors`` among ``num_samples`` independent examples."""
    complexity = complexity_nats(code_length_bits=code_length_bits, delta=delta)
    return RiskBounds(
        binomial=binomial_tail_bound(num_errors, num_samples, complexity),
        kl=kl_bound(num_errors, num_samples, complexity),
        catoni=catoni_bound(num_errors, num_samples, complexity),
        mcallester=mcallester_bound(num_errors, num_samples, complexity),
    )


def holdout_bound(*, num_errors: int, num_samples: int, delta: float) -> float:
    """Return the binomial bound from examples that played no part in training: there is nothing to pay but delta."""
    return binomial_tail_bound(num_errors, num_samples, complexity_nats(code_length_bits=0.0, delta=delta))


def binomial_tail_bound(num_errors: int, num_samples: int, complexity: float) -> float:
    r"""Return :math:`\sup\{p : P(\mathrm{Bin}(n, p) \le k) \ge e^{-c}\}`, the tightest bound there is of its kind.

    The tail is summed in log space: as a float it underflows at a complexity above some 745 nats, and a tail of zero
    makes a bound that is too small.

    Args:
        num_errors: k, 0 to n.
        num_samples: n, at least 1.
        complexity: c, in nats.
    """
    _check_counts(num_errors, num_samples)
    if num_errors == num_samples:
        return 1.0
    counts = np.arange(num_errors + 1, dtype=np.float64)
    log_choose = np.concatenate(([0.0], np.cumsum(np.log((num_samples - counts[:-1]) / (counts[:-1] + 1)))))

    def below(p: float) -> bool:
        log_pmf = log_choose + counts * math.log(p) + (num_samples - counts) * math.log1p(-p)
        peak = float(log_pmf.max())
        return peak + math.log(float(np.exp(log_pmf - peak).sum())) < -complexity - _SLACK_NATS

    return _least_true(below, num_errors / num_samples)


def binary_kl(q: float, p: float) -> float:
    """Return KL(Bernoulli(q) || Bernoulli(p)) in nats; infinite where p excludes what q allows."""
    if (q > 0 and p <= 0) or (q < 1 and p >= 1):
        return math.inf
    at_one = q * math.log(q / p) if q > 0 else 0.0
    at_zero = (1 - q) * (math.log1p(-q) - math.log1p(-p)) if q < 1 else 0.0
    return max(at_one + at_zero, 0.0)


def kl_bound(num_errors: int, num_samples: int, complexity: float) -> float:
    r"""Return the largest p with :math:`\mathrm{kl}(k/n \| p) \le c/n`.

    The summand :math:`\ln(2\sqrt{n})` of the bound for randomised classifiers is not needed for a single one.
    """
    _check_counts(num_errors, num_samples)
    q = num_errors / num_samples
    limit = (complexity + _SLACK_NATS) / num_samples
    return 1.0 if q == 1 else _least_true(lambda p: binary_kl(q, p) > limit, q)


def catoni_bound(num_errors: int, num_samples: int, complexity: float) -> float:
    r"""Return the least, over m inverse temperatures, of Catoni's bound with :math:`\ln m` paid.

    .. math:: \frac{1 - \exp(-\gamma k / n^2 - (c + \ln m) / n)}{1 - \exp(-\gamma / n)}

    The grid of :data:`NUM_CATONI_TEMPERATURES` inverse temperatures gamma is fixed beforehand.
    """
    _check_counts(num_errors, num_samples)
    paid = complexity + math.log(NUM_CATONI_TEMPERATURES)
    scaled = [2.0 ** (2 - j / 4) for j in range(NUM_CATONI_TEMPERATURES)]
    bounds = [-math.expm1(-(g * num_errors / num_samples + paid / num_samples)) / -math.expm1(-g) for g in scaled]
    return min(1.0, *bounds)


def mcallester_bound(num_errors: int, num_samples: int, complexity: float) -> float:
    r"""Return :math:`k/n + \sqrt{(c + \ln n) / (2n - 1)}`, at most 1."""
    _check_counts(num_errors, num_samples)
    gap = math.sqrt((complexity + math.log(num_samples)) / (2 * num_samples - 1))
    return min(1.0, num_errors / num_samples + gap)


def empirical_bernstein_bound(losses: Float[np.ndarray, " n"], complexity: float) -> float:
    r"""Return a bound on the mean of the conditional expectations of losses in [0, 1], one after another.

    The losses need not be independent: each has an expectation given those before it, as next tokens have. With
    centres c that are functions of earlier losses (here their mean, a half counted in advance) and
    :math:`\psi(\lambda) = -\ln(1 - \lambda) - \lambda`,

    .. math:: \frac1n \sum_i \mathbb{E}[x_i | x_{<i}]
        \le \frac1n \sum_i x_i + \frac{\psi(\lambda)}{\lambda n} \sum_i (x_i - c_i)^2 + \frac{c + \ln m}{\lambda n},

    the least over m values of lambda, which are paid. For every fixed lambda the exponential of the difference, times
    lambda n, is a supermartingale, as :math:`e^{\lambda y - \psi(\lambda) y^2} \le 1 + \lambda y` for y at least -1.
    Unlike the binomial bound it profits from losses that vary little without being 0 or 1.

    Args:
        losses: In their order.
        complexity: c, in nats.

    Raises:
        ConfigError: There are none, or one lies outside [0, 1].

    Reference:
        Fan, Grama, Liu, "Exponential inequalities for martingales with applications", EJP 2015 (arXiv 1311.6273), for
        the inequality; Howard, Ramdas, McAuliffe, Sekhon, arXiv 1810.08240, for predictable centres.
    """
    if losses.ndim != 1 or not len(losses) or not ((losses >= 0) & (losses <= 1)).all():
        raise ConfigError(f"losses of shape {losses.shape}: need at least one, each from 0 to 1; scale them before")
    counts = np.arange(1, len(losses) + 1)
    centres = (0.5 + np.concatenate([[0.0], np.cumsum(losses)[:-1]])) / counts
    spread, mean = float(np.square(losses - centres).mean()), float(losses.mean())
    paid = (complexity + math.log(NUM_BERNSTEIN_RATES) + _SLACK_NATS) / len(losses)
    rates = [0.95 * 2.0 ** (-j / 2) for j in range(NUM_BERNSTEIN_RATES)]
    return min(1.0, *(mean + ((-math.log1p(-rate) - rate) * spread + paid) / rate for rate in rates))


def affordable_bits(*, target_risk: float, empirical_risk: float, num_samples: int, delta: float) -> float:
    """Return the code length at which the kl bound just reaches a target; negative if no code is short enough.

    Args:
        target_risk: Bound wanted, such as chance.
        empirical_risk: Share of errors that training is expected to reach.
        num_samples: n.
        delta: Failure probability.
    """
    if target_risk <= empirical_risk:
        return -math.inf
    allowed_nats = num_samples * binary_kl(empirical_risk, target_risk)
    return (allowed_nats - complexity_nats(code_length_bits=0.0, delta=delta)) / math.log(2)


def _check_counts(num_errors: int, num_samples: int) -> None:
    if not 0 <= num_errors <= num_samples or num_samples < 1:
        raise ConfigError(
            f"num_errors={num_errors}, num_samples={num_samples}: need 0 <= num_errors <= num_samples >= 1"
        )


def _least_true(is_above: Callable[[float], bool], low: float) -> float:
    """Bisect (low, 1) for the point where a monotone predicate becomes true; return its upper end."""
    high = 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if middle in {low, high}:
            break
        low, high = (low, middle) if is_above(middle) else (middle, high)
    return high
