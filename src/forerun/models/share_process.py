"""The processes that share a model on one machine: what each runs, how they are started, and how they end.

The first process is the caller's. It starts the others (``python -m forerun.models.share_process CONFIG``), each with a
GPU of its own, or on a CPU; they follow it until it closes. A pipe that only the first process holds tells them when it
is gone, however it ended. Where all processes are started by another program, see :mod:`forerun.models.launched_share`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
from torch import distributed
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from forerun.core import errors
from forerun.core.dtype_choice import DtypeName
from forerun.core.errors import ConfigError, DeviceError, ForerunError
from forerun.models.checkpoint import Checkpoint
from forerun.models.device import DeviceOptions, devices_from, recorder_for
from forerun.models.leading_runner import LeadingRunner, exchange_failures, follow
from forerun.models.load import load_checkpoint
from forerun.models.model_share import ModelSplit
from forerun.models.runner import run_on_device
from forerun.models.tensor_parallel import Collective, ProcessCollective, TensorParallelRunner
from forerun.models.weight_format import format_problem
from forerun.nn.prefix_attention import AttentionBackend

_PATIENCE_S: Final = 180.0
"""How long the others may take to start."""
_IDLE: Final = timedelta(days=365)
"""How long a follower may wait for a message: a server may be idle."""
_POLL_S: Final = 0.02
_MOMENT_S: Final = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareConfig:
    """What the processes run; all of them the same.

    Attributes:
        target: The model, as for :func:`forerun.models.load.load_checkpoint`.
        dtype: Format of the weights, any but int8.
        parts: How much of the model each process gets, in proportion.
        num_sequences: Sequences of the cache, if memory allows.
        capacity: Slots of each.
        device: Of the first process; the others of a GPU's take the ones after it.
        is_eager: Whether passes are run kernel by kernel.
        backend: How the common prefix of a sequence's rows is read.
        cache_bytes: Most bytes of keys and values in each process; ``None``: 80% of what is free.
        num_threads: Threads of each process on a CPU.
    """

    target: str
    dtype: DtypeName
    parts: tuple[int, ...]
    num_sequences: int
    capacity: int
    device: str = "cpu"
    is_eager: bool = True
    backend: AttentionBackend = "matmul"
    cache_bytes: int | None = None
    num_threads: int = 1

    def device_of(self, rank: int) -> str:
        """Return the device of a process.

        Raises:
            ConfigError: There are fewer GPUs.
        """
        return devices_from(self.device, len(self.parts), option="tensor_parallel")[rank]


class SharedModel(LeadingRunner):
    """A model in several processes, as the first of them has it.

    Args:
        config: What the processes run.
        checkpoint: The model.

    Raises:
        ConfigError: The model or the machine does not allow it.
        DeviceError: A process ended before it was ready.

    Effects:
        Starts the other processes, which :meth:`close`, or the end of this one, ends.
    """

    def __init__(self, config: ShareConfig, checkpoint: Checkpoint) -> None:
        check_share(config, checkpoint)
        for rank in range(len(config.parts)):
            config.device_of(rank)
        self._folder = tempfile.TemporaryDirectory(prefix="forerun-")
        store = Path(self._folder.name) / "store"
        self._share: TensorParallelRunner | None = None
        self._abort: threading.Thread | None = None
        self._is_on_gpu = config.device != "cpu"
        self._processes = [_start(config, rank, store) for rank in range(1, len(config.parts))]
        try:
            collective = self._join(config, store)
            with exchange_failures():
                self._share = build_share(config, checkpoint, collective)
            super().__init__(self._share, collective, check=self._check_alive)
        except BaseException:
            self._end()
            raise
        for process in self._processes:
            threading.Thread(target=self._watch, args=(process,), daemon=True).start()

    def close(self) -> None:
        """End the others, and wait for that. May be called again.

        No message is sent: after an interrupted pass they may wait for something else, and would not hear it.
        """
        if self._processes:
            self._end()

    def _join(self, config: ShareConfig, store: Path) -> ProcessCollective:
        """Wait until the others are there, and meet them."""
        shared = _open_store(store, size=len(config.parts))
        deadline = time.monotonic() + _PATIENCE_S
        for rank in range(1, len(config.parts)):
            while not shared.check([_ready(rank)]):
                self._check_alive()
                if time.monotonic() > deadline:
                    raise DeviceError(f"process {rank} of the model was not ready after {_PATIENCE_S:.0f} s")
                time.sleep(_POLL_S)
            answer = shared.get(_ready(rank)).decode()
            if answer:
                failure = json.loads(answer)
                raise getattr(errors, failure["kind"])(failure["error"])
        return _meet(config, shared, rank=0)

    def _check_alive(self) -> None:
        for rank, process in enumerate(self._processes, start=1):
            if process.poll() is not None:
                raise DeviceError(f"process {rank} of the model ended (exit code {process.returncode})")

    def _watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait for the end of a process, and let no exchange wait for it.

        Gloo notices by itself that a process is gone. A kernel of NCCL would wait for it forever, and this process for
        the kernel.
        """
        process.wait()
        if process in self._processes and self._is_on_gpu:
            self._abort_exchanges()

    def _abort_exchanges(self) -> threading.Thread:
        """Begin to end all exchanges, once: NCCL's kernels stop at once, its memory goes when no graph names it."""
        if self._abort is None:
            self._abort = threading.Thread(target=abort_exchanges, daemon=True)
            self._abort.start()
        return self._abort

    def _end(self) -> None:
        processes, self._processes = self._processes, []
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()  # which ends it, whatever it waits for
        for process in processes:
            process.wait()
        if distributed.is_initialized():
            abort = self._abort_exchanges() if self._is_on_gpu else None
            if self._share is not None:
                self._share.record_anew()  # NCCL waits for the graphs that hold its calls
            if abort is None:
                distributed.destroy_process_group()
            else:
                abort.join(_PATIENCE_S)
        self._folder.cleanup()


def abort_exchanges() -> None:
    """End this process's part in exchanges whose other processes may be gone."""
    distributed.distributed_c10d._abort_process_group()  # pyright: ignore[reportPrivateUsage] (destroying waits)


def build_share(
    config: ShareConfig, checkpoint: Checkpoint, collective: Collective, *, device: str | None = None
) -> TensorParallelRunner:
    """Build the runner of this process's share.

    Args:
        config: What the processes run.
        checkpoint: The model.
        collective: The processes.
        device: Of this process; ``None``: the one that the configuration says.

    Raises:
        ConfigError: The model, the machine or its memory does not allow it.
    """
    device = config.device_of(collective.rank) if device is None else device
    recorder = recorder_for(device, is_eager=config.is_eager, is_urgent=True)
    assert recorder is not None, "a share runs in passes of fixed shape"
    options = DeviceOptions(recorder=recorder, backend=config.backend, cache_bytes=config.cache_bytes)

    def least(num_sequences: int) -> int:
        everyone = collective.gather(torch.tensor([num_sequences], device=options.device))
        return min(int(other) for other in everyone)

    return TensorParallelRunner(
        ModelSplit.of(checkpoint.config, config.parts),
        checkpoint.tensors.tensor,
        lambda decoder, **share: run_on_device(
            decoder, options, num_sequences=config.num_sequences, capacity=config.capacity, agree=least, **share
        ),
        collective=collective,
        dtype=config.dtype,
        device=options.device,
    )


def check_share(config: ShareConfig, checkpoint: Checkpoint) -> None:
    """Refuse what can't be shared, before any process meets another.

    Args:
        config: What the processes run.
        checkpoint: The model.

    Raises:
        ConfigError: It can't.
    """
    if config.dtype == "int8":
        raise ConfigError(
            'dtype="int8": its kernels have no passes of fixed shape, which processes that share a model run; choose '
            '"bfloat16" or "float32"'
        )
    split = ModelSplit.of(checkpoint.config, config.parts)
    split.columns(checkpoint.config.vocab_size)
    for rank in range(len(config.parts)):
        problem = format_problem(split.share_config(rank), config.dtype)
        if problem is not None:
            raise ConfigError(f'dtype="{config.dtype}", in the share of process {rank}: {problem}; choose another')


def _start(config: ShareConfig, rank: int, store: Path) -> "subprocess.Popen[bytes]":
    """Start a follower. In a session of its own, so that Ctrl-C in a terminal is the first process's to handle."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "forerun.models.share_process", str(rank), str(store), json.dumps(asdict(config))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": str(config.num_threads)},
    )


def _open_store(path: Path, *, size: int) -> FileStore:
    store = FileStore(str(path), size)
    store.set_timeout(timedelta(seconds=_PATIENCE_S))
    return store


def _ready(rank: int) -> str:
    return f"ready/{rank}"


def _meet(config: ShareConfig, store: FileStore, *, rank: int) -> ProcessCollective:
    return meet(config.device_of(rank), store=store, rank=rank, world_size=len(config.parts))


def meet(device: str, **place: Any) -> ProcessCollective:
    """Join the processes that share a model.

    Args:
        device: Of this process.
        place: Where they meet, and which of how many this one is, for ``init_process_group``.
    """
    if device != "cpu":
        torch.cuda.set_device(torch.device(device))
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=_IDLE, **place)
    return ProcessCollective()


def _end_with_parent(folder: Path) -> None:
    """End this process when the pipe closes that the first one holds, which may not have been able to tidy up."""
    # Not by sys.stdin, whose lock a reader that waits would hold while the process ends.
    while os.read(0, 1):
        continue
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def main() -> int:
    """Run a follower: its rank, the file to meet at, and the configuration come as arguments."""
    rank, path, record = int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    config = ShareConfig(**(record | {"parts": tuple(record["parts"])}))
    threading.Thread(target=_end_with_parent, args=(path.parent,), daemon=True).start()
    store = _open_store(path, size=len(config.parts))
    torch.set_num_threads(config.num_threads)
    try:
        checkpoint = load_checkpoint(config.target)
    except ForerunError as error:
        store.set(_ready(rank), json.dumps({"kind": type(error).__name__, "error": str(error)}))
        return 2
    store.set(_ready(rank), "")
    collective = _meet(config, store, rank=rank)
    try:
        follow(build_share(config, checkpoint, collective), collective)
    except RuntimeError:
        # Where the first process has gone, exchanges break off, and the pipe ends this one in a moment, without a word.
        time.sleep(_MOMENT_S)
        raise
    distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
