"""Torch generators keyed by names and numbers, for computations that draw many numbers at once.

Decoding has streams of its own (:mod:`forerun.core.rng`), which give the same bits on every machine; these give the
same numbers for one version of torch.
"""

import hashlib

import torch


def keyed_seed(seed: int, *key: str | int) -> int:
    """Return a seed in [0, 2**63) that is a function of a root seed and a key.

    Args:
        seed: Root seed.
        key: What the numbers are for, such as ``"plan", episode, env_step``. Other keys give independent seeds.
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in key)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def keyed_generator(seed: int, *key: str | int) -> torch.Generator:
    """Return a fresh generator on the CPU seeded by :func:`keyed_seed`; nothing global is read or changed."""
    return torch.Generator().manual_seed(keyed_seed(seed, *key))
