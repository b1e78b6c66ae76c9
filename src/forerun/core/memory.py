"""Memory that this process holds: what is touched, and what is given back."""

import ctypes
import math
import mmap
import os
from typing import Final

import numpy as np

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""Options of glibc's mallopt: from how many free bytes on they are given back, and which blocks are mapped apart."""
_MOST_BYTES: Final = 2**31 - 1


def release_free_memory() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc); loading leaves a lot of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for the rest of its life, where the C library can (glibc).

    A training step frees and takes back the same megabytes; each time they come from the system anew, the first touch
    of every page is a fault, a quarter of the step of a small model. The peak of memory stays what it is.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if set_option is not None:
        for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            set_option(option, _MOST_BYTES)


def sparse_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Return zeros of which only the parts that are written take memory, in pages of a few KiB.

    Linux may back an ordinary array with pages of 2 MiB: a cache of 60 arrays that holds one token then takes 120 MiB.

    Args:
        shape: Of the float32 array.
    """
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, np.float32)
    size = math.prod(shape)
    pages = mmap.mmap(-1, max(1, 4 * size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, np.float32, size).reshape(shape)
