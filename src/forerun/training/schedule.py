"""Learning-rate schedules as pure functions of the step.

Each gives the fraction of the peak learning rate at a step, from 0, of a run of ``num_steps`` that begins with
``num_warmup`` steps of linear rise.
"""

import math


def warmup_cosine(step: int, *, num_steps: int, num_warmup: int, final_fraction: float = 0.05) -> float:
    """Return the fraction of the peak learning rate at a step: linear rise, then a half cosine.

    Args:
        step: From 0.
        num_steps: Length of the run.
        num_warmup: Steps of the rise.
        final_fraction: Where the cosine ends.
    """
    if step < num_warmup:
        return _rise(step, num_warmup=num_warmup)
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_stable_decay(step: int, *, num_steps: int, num_warmup: int, decay_fraction: float) -> float:
    """Return the fraction of the peak learning rate at a step: linear rise, the peak, then a linear fall to 0.

    A run can go on from any point before the fall, so one run gives models of several lengths.

    Args:
        step: From 0.
        num_steps: Length of the run.
        num_warmup: Steps of the rise.
        decay_fraction: Share of all steps in which the rate falls.

    Reference:
        Hu et al. 2024 (arXiv 2404.06395), there with an exponential fall.
    """
    if step < num_warmup:
        return _rise(step, num_warmup=num_warmup)
    num_falling = max(1, round(decay_fraction * num_steps))
    return min(1.0, max(0, num_steps - step) / num_falling)


def _rise(step: int, *, num_warmup: int) -> float:
    return (step + 1) / num_warmup
