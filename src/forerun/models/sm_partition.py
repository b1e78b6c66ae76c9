"""A part of a GPU's multiprocessors for one stream, by a green context, where torch, driver and GPU offer that.

A draft that runs beside its target then takes multiprocessors from it only up to its part; a target that reads memory
all the time has some to spare. The target's own stream may use all of them.
"""

import warnings
from collections.abc import Callable
from typing import Any, Final, Protocol

_STEP_BEFORE_9: Final = 2
_STEP: Final = 8
"""Multiprocessors are given in multiples of so many (CUDA driver API, ``cuDevSmResourceSplitByCount``)."""
_LEAST_BEFORE_9: Final = 4


class SmPartition(Protocol):
    """Some multiprocessors: a green context of torch."""

    def Stream(self) -> Any:  # noqa: N802 (torch's name)
        """Return the stream whose work they do."""
        ...


def num_partition_sms(share: float, *, num_sms: int, capability: tuple[int, int]) -> int:
    """Return how many multiprocessors a share is, as many as a GPU can give apart.

    Args:
        share: Between 0 and 1.
        num_sms: All multiprocessors.
        capability: Compute capability, which decides in what steps they are given.
    """
    is_old = capability < (9, 0)
    step, least = (_STEP_BEFORE_9, _LEAST_BEFORE_9) if is_old else (_STEP, _STEP)
    wanted = round(share * num_sms / step) * step
    return min(max(wanted, least), num_sms // step * step)


def partition_for(
    *, num_sms: int, device_id: int, create: Callable[..., SmPartition] | None = None
) -> SmPartition | None:
    """Return some multiprocessors set apart; ``None``, with a warning, where there is no such thing.

    Its stream ends with it: whoever uses the one keeps the other.

    Args:
        num_sms: How many, as :func:`num_partition_sms` says.
        device_id: Number of the CUDA device.
        create: Makes the partition; by default torch's green contexts.
    """
    try:
        partition = (create or _green_context())(num_sms=num_sms, device_id=device_id)
        partition.Stream()  # newer than green contexts themselves
    except (RuntimeError, ImportError, AttributeError) as error:
        warnings.warn(
            f"no {num_sms} multiprocessors apart for the draft ({error}); it runs in a stream of lower priority",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return partition


def _green_context() -> Callable[..., SmPartition]:
    from torch.cuda.green_contexts import GreenContext  # newer than the oldest torch that we run with

    return GreenContext.create
