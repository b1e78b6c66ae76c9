"""First weights as a function of a seed and a key, whatever was built before."""

from collections.abc import Generator
from contextlib import contextmanager

import torch

from forerun.core.generator import keyed_seed


@contextmanager
def seeded_weights(seed: int, *key: str | int) -> Generator[None]:
    """Fix the weights of the modules that are built inside.

    torch's modules draw them from the global generator; its state is put back at the end.

    Args:
        seed: Root seed.
        key: Of the module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, *key))
        yield
