"""Where a model trains: the CPU, a GPU, or several devices that share its parameters (FSDP2, started by torchrun)."""

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
from torch import Tensor, distributed, nn

from forerun.core.errors import ConfigError

DEVICE_VARIABLE: Final = "FORERUN_DEVICE"
"""``auto``, ``cpu`` or ``cuda``; processes that are started for runs inherit it."""
_PATIENCE: Final = timedelta(minutes=30)


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The processes that train one model together.

    Attributes:
        rank: This process's number.
        size: How many there are.
        device: Where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files: the first one does."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total / self.size

    def rows(self, batch_BT: Tensor) -> Tensor:
        """Return this process's share of a batch, on its device.

        Raises:
            ConfigError: The batch can't be shared evenly.
        """
        if len(batch_BT) % self.size:
            raise ConfigError(
                f"batch_sequences={len(batch_BT)}: must be a multiple of the {self.size} processes that share a batch"
            )
        return batch_BT[self.rank :: self.size].to(self.device)

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.size > 1:
            distributed.barrier()


def training_device() -> torch.device:
    """Return where this process trains: what ``FORERUN_DEVICE`` says, else a GPU where there is one.

    Raises:
        ConfigError: The variable names no device, or one that is not there.
    """
    return device_named(os.environ.get(DEVICE_VARIABLE, "auto"), option=DEVICE_VARIABLE)


def device_named(wanted: str, *, option: str) -> torch.device:
    """Return a device by name.

    Args:
        wanted: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
        option: Where the name comes from, for messages.

    Raises:
        ConfigError: It names no device, or one that is not there.
    """
    if wanted not in {"auto", "cpu", "cuda"}:
        raise ConfigError(f"{option}={wanted!r}: must be auto, cpu or cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{option}='cuda': PyTorch finds no GPU here; take cpu, or install a build for CUDA")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def join_world() -> World:
    """Join the processes that torchrun started, until this one ends; without torchrun this process is alone."""
    device, size = training_device(), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(device=device)
    if not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        atexit.register(distributed.destroy_process_group)
    return World(rank=distributed.get_rank(), size=size, device=device)


def share_parameters(model: nn.Module, layers: nn.ModuleList, *, dtype: torch.dtype) -> None:
    """Split a model's parameters, gradients and moments over all processes; a layer is gathered while it runs.

    Args:
        model: On the device of this process, with the same weights in every process.
        layers: Its layers, gathered one at a time.
        dtype: Of the arithmetic; parameters keep theirs, and the model returns float32.

    Effects:
        Replaces the parameters by tensors split over the processes (DTensor).
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # takes long, and one process needs none

    inner = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    outer = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, output_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mp_policy=inner)
    fully_shard(model, mp_policy=outer)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that may be split over processes as a whole; every process must ask."""
    return tensor.full_tensor() if _is_split(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor on the device of another one, and split as that one is."""
    if not _is_split(other) or tensor.shape != other.shape:
        return tensor.to(other.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)


def is_first_process() -> bool:
    """Return whether this is the process that prints, among those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _is_split(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
