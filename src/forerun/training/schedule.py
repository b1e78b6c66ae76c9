"""Learning-rate schedules as pure functions of the step."""

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
        return (step + 1) / num_warmup
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
