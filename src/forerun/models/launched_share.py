"""Processes that share a model and that another program has started, such as ``torchrun``: all run the same command.

The first of them goes on with it and leads. In the others the model is where the command ends: they follow the first
until it closes, and leave. On several machines each process takes the GPU of its number on its own.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from torch import distributed

from forerun.core.errors import ConfigError, DeviceError
from forerun.models.checkpoint import Checkpoint
from forerun.models.device import checked_cuda_device, num_cuda_devices
from forerun.models.leading_runner import LeadingRunner, exchange_failures, follow
from forerun.models.share_process import ShareConfig, build_share, check_share, meet
from forerun.models.tensor_parallel import Collective, TensorParallelRunner

_NAMES: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Which of the started processes this one is.

    Attributes:
        rank: Among all.
        local_rank: Among those of this machine.
        size: How many there are.
    """

    rank: int
    local_rank: int
    size: int

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Launch | None":
        """Return what a launcher has said in the environment; ``None`` where it started no more than one process.

        Raises:
            ConfigError: It is no number.
        """
        if any(not environment.get(name) for name in _NAMES):
            return None
        said = {name: environment[name] for name in _NAMES[:3]}
        try:
            rank, local_rank, size = (int(value) for value in said.values())
        except ValueError as error:
            raise ConfigError(
                f"{', '.join(f'{name}={value}' for name, value in said.items())}: must be whole numbers, as torchrun "
                "sets them; start the command with torchrun, or without these variables"
            ) from error
        return cls(rank=rank, local_rank=local_rank, size=size) if size > 1 else None

    def device(self, config: ShareConfig) -> str:
        """Return this process's device: the GPU of its number on this machine, from the configured one on.

        Raises:
            ConfigError: There is no such GPU.
        """
        if config.device == "cpu":
            return config.device
        count = num_cuda_devices()
        index = (checked_cuda_device(config.device, num_devices=count).index or 0) + self.local_rank
        return str(checked_cuda_device(f"cuda:{index}", num_devices=count))


class LaunchedModel(LeadingRunner):
    """A model in processes that were started together, as the first of them has it."""

    def __init__(self, share: TensorParallelRunner, collective: Collective) -> None:
        super().__init__(share, collective)
        self._share = share

    def close(self) -> None:
        """Let the others go. May be called again."""
        if distributed.is_initialized():
            with suppress(DeviceError):  # who is gone needs no word
                super().close()
            self._share.record_anew()
            distributed.destroy_process_group()


def join_launch(launch: Launch, config: ShareConfig, checkpoint: Checkpoint) -> LaunchedModel:
    """Return the model in the first process; in the others, follow it, and leave.

    Args:
        launch: What this process is.
        config: The same in all of them.
        checkpoint: The model.

    Raises:
        ConfigError: Another number of processes was started than shares are configured, or a share can't be had.
        DeviceError: Another process is gone.
        SystemExit: In all processes but the first, when it has closed.
    """
    if launch.size != len(config.parts):
        raise ConfigError(
            f"tensor_parallel={len(config.parts)}: {launch.size} processes were started (WORLD_SIZE); make them equal"
        )
    check_share(config, checkpoint)
    device = launch.device(config)
    collective = meet(device, init_method="env://", rank=launch.rank, world_size=launch.size)
    with exchange_failures():
        share = build_share(config, checkpoint, collective, device=device)
        if launch.rank == 0:
            return LaunchedModel(share, collective)
        follow(share, collective)
    share.record_anew()
    distributed.destroy_process_group()
    raise SystemExit(0)
