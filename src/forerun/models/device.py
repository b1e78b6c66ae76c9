"""Where a model runs: the device by its name, how passes are launched there, and how many sequences fit.

What is decided from numbers is decided by functions of numbers, so that it can be tested without a device.
"""

from dataclasses import dataclass

import torch

from forerun.core.errors import ConfigError
from forerun.models.config import DecoderConfig
from forerun.models.cuda_recorder import CudaGraphRecorder
from forerun.models.graph_pool import EagerRecorder, Recorder
from forerun.models.sm_partition import SmPartition, num_partition_sms, partition_for
from forerun.nn.prefix_attention import AttentionBackend

_CACHE_SHARE = 0.8
"""Of what is free once the weights are there; the rest is for the draft, for graphs and for what they compute with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceOptions:
    """How a runner for a device is built.

    Attributes:
        recorder: Launches its passes, on its device.
        backend: How the common prefix of a sequence's rows is read.
        cache_bytes: Most bytes of keys and values; ``None``: 80% of what the device has free; on a CPU, no limit.
        num_tree_slots: Further slots of each sequence, for draft trees.
    """

    recorder: Recorder
    backend: AttentionBackend = "matmul"
    cache_bytes: int | None = None
    num_tree_slots: int = 0

    @property
    def device(self) -> torch.device:
        """Where the runner's weights go."""
        return self.recorder.device


def recorder_for(device: str, *, is_eager: bool, is_urgent: bool, sm_share: float | None = None) -> Recorder | None:
    """Return what launches passes on a device; ``None`` where passes are not of fixed shape (a CPU, by default).

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        is_eager: Whether passes are run kernel by kernel, on a CPU too, instead of as CUDA graphs.
        is_urgent: Whether this work goes first where two share a GPU.
        sm_share: Share of the multiprocessors that it may use, where the GPU can set some apart; ``None``: all.

    Raises:
        ConfigError: There is no such device.
    """
    if device == "cpu":
        return EagerRecorder(torch.device("cpu")) if is_eager else None
    where = checked_cuda_device(device, num_devices=num_cuda_devices())
    if is_eager:
        return EagerRecorder(where)
    partition: SmPartition | None = None
    if sm_share is not None:
        properties = torch.cuda.get_device_properties(where)
        num_sms = num_partition_sms(
            sm_share,
            num_sms=properties.multi_processor_count,
            capability=(properties.major, properties.minor),
        )
        partition = partition_for(num_sms=num_sms, device_id=where.index)
    stream = None if partition is None else partition.Stream()
    return CudaGraphRecorder(where, priority=-1 if is_urgent else 0, stream=stream, keep=partition)


def num_cuda_devices() -> int:
    """Return how many GPUs torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def checked_cuda_device(device: str, *, num_devices: int) -> torch.device:
    """Return a CUDA device, its number said.

    Args:
        device: ``cuda`` or ``cuda:N``.
        num_devices: How many there are.

    Raises:
        ConfigError: There is none, or none with this number.
    """
    index = torch.device(device).index or 0
    if num_devices == 0:
        raise ConfigError(
            f'device="{device}": PyTorch finds no CUDA device here; set device="cpu", or install a build of torch for '
            "CUDA (`forerun doctor` says what is there)"
        )
    if index >= num_devices:
        raise ConfigError(f'device="{device}": there are {num_devices} CUDA devices, numbered from 0; choose one')
    return torch.device("cuda", index)


def devices_from(device: str, num: int, *, option: str) -> tuple[str, ...]:
    """Return a device and those after it; a CPU as often as asked.

    Args:
        device: The first: ``cpu``, ``cuda`` or ``cuda:N``.
        num: How many are needed.
        option: That asks for them, for an error.

    Raises:
        ConfigError: There are fewer.
    """
    if device == "cpu":
        return (device,) * num
    count = num_cuda_devices()
    first = checked_cuda_device(device, num_devices=count).index or 0
    if first + num > count:
        raise ConfigError(f"{option}={num} from {device} on: there are {count} GPUs here; take fewer")
    return tuple(f"cuda:{first + place}" for place in range(num))


def sequence_bytes(config: DecoderConfig, *, num_slots: int, item_bytes: int) -> int:
    """Return the bytes of keys and values of one sequence.

    Args:
        config: Of the model.
        num_slots: Slots of the sequence.
        item_bytes: Bytes of a number.
    """
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * num_slots * item_bytes


def affordable_sequences(*, wanted: int, bytes_each: int, cache_bytes: int) -> int:
    """Return how many sequences a cache can hold, at most as many as are wanted.

    Args:
        wanted: Requests to decode side by side.
        bytes_each: Of one sequence.
        cache_bytes: What the cache may take.

    Raises:
        ConfigError: Not even one fits.
    """
    num = min(wanted, cache_bytes // bytes_each)
    if num < 1:
        raise ConfigError(
            f"one sequence takes {bytes_each / 2**30:.2f} GiB of keys and values, and {cache_bytes / 2**30:.2f} GiB "
            "are there for them: set a smaller max_model_len, or a smaller model or draft"
        )
    return num


def cache_limit_bytes(options: DeviceOptions) -> int | None:
    """Return what keys and values may take on a device, with the weights there already; ``None`` for no limit."""
    if options.cache_bytes is not None or options.device.type == "cpu":
        return options.cache_bytes
    torch.cuda.empty_cache()  # what torch keeps of the loading is free too
    free, _ = torch.cuda.mem_get_info(options.device)
    return int(_CACHE_SHARE * free)
