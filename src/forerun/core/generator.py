"""Torch generators keyed by names and numbers, for computations that draw many numbers at once.

Decoding has streams of its own (:mod:`forerun.core.rng`), which give the same bits on every machine; these give the
same numbers for one version of torch.
"""

import hashlib

import torch


def keyed_generator(seed: int, *key: str | int) -> torch.Generator:
    """Return a generator on the CPU that is a function of a seed and a key; nothing global is read or changed.

    Args:
        seed: Root seed.
        key: What the numbers are for, such as ``"plan", episode, env_step``. Other keys give independent numbers.

    Returns:
        A fresh generator; two calls with one key give equal ones.
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in key)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
