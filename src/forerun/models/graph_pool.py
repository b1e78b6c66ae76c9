"""Functions of fixed shape, recorded once for each shape and replayed on new numbers.

On a GPU a recorded function is a CUDA graph: one launch instead of hundreds, and no Python while it runs. What makes a
function fit for that is the same everywhere: its inputs are one buffer that stays where it is, its shapes are those of
its key, its results lie in a tensor that the next replay overwrites, and it asks nothing of the host. So the pool and
all that is built on it run on a CPU too, by :class:`EagerRecorder`.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from forerun.core.errors import DeviceMemoryError

Function = Callable[[Tensor], Tensor]
"""From the buffer of inputs, int64 ``[size]``, to one tensor of results."""

_MAX_GRAPHS: Final = 256
_NUM_WARM_UPS: Final = 2


class Pending(Protocol):
    """Results that may still be computed."""

    def result(self) -> np.ndarray:
        """Wait for the results, and return a copy; the same when asked again."""
        ...


class Replay(Protocol):
    """A recorded function with its buffers."""

    def launch(self, inputs: np.ndarray) -> Pending:
        """Run on new inputs, int64 of the size that was recorded; may return before it has run."""
        ...


class Recorder(Protocol):
    """Makes functions replayable, and runs others in the same order of work.

    Attributes:
        device: Where functions run.
    """

    device: torch.device

    def record(self, function: Function, inputs: np.ndarray) -> Replay:
        """Prepare a function for inputs of this size; it may be run on these any number of times."""
        ...

    def run(self, function: Function, inputs: np.ndarray) -> Pending:
        """Run a function once, of inputs of any size."""
        ...

    def in_order(self) -> AbstractContextManager[object]:
        """Return a context in which torch works after all that was launched, and before all that will be."""
        ...

    def wait_for(self, other: "Recorder") -> None:
        """Let what is launched from now on begin when all that another has launched is done; the host goes on."""
        ...

    def take_busy_s(self) -> float:
        """Return how long replays kept the device busy since the last call, which is measured from the first call on.

        Waits for what has been launched.
        """
        ...


class GraphPool:
    """Recorded functions by key; the one not used for longest makes room.

    Args:
        recorder: Records and runs them.
        max_graphs: Functions to keep, each with its buffers.
    """

    def __init__(self, recorder: Recorder, *, max_graphs: int = _MAX_GRAPHS) -> None:
        self._recorder, self._max_graphs = recorder, max_graphs
        self._replays: OrderedDict[Hashable, Replay] = OrderedDict()

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._replays)

    def launch(self, key: Hashable, function: Function, inputs: np.ndarray) -> Pending:
        """Run the function of a key, which is recorded the first time.

        Where memory is short, all that is recorded goes, and the function is tried once more.

        Args:
            key: All that the function depends on beside its inputs.
            function: Not looked at where the key is known.
            inputs: int64, of the same size for every launch of a key.

        Raises:
            DeviceMemoryError: There is too little memory even so.
        """
        return self._with_memory(lambda: self._launch(key, function, inputs))

    def run(self, function: Function, inputs: np.ndarray) -> Pending:
        """Run a function once, of inputs of any size; as :meth:`launch` where memory is short.

        Raises:
            DeviceMemoryError: As :meth:`launch`.
        """
        return self._with_memory(lambda: self._recorder.run(function, inputs))

    def _with_memory(self, work: Callable[[], Pending]) -> Pending:
        try:
            return work()
        except torch.OutOfMemoryError:
            self._replays.clear()
        if self._recorder.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            return work()
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"a pass does not fit into the memory of {self._recorder.device} beside weights and cache; set a "
                "smaller kv_cache_bytes, max_num_seqs or max_model_len"
            ) from error

    def _launch(self, key: Hashable, function: Function, inputs: np.ndarray) -> Pending:
        replay = self._replays.get(key)
        if replay is None:
            replay = self._replays[key] = self._recorder.record(function, inputs)
            if len(self._replays) > self._max_graphs:
                self._replays.popitem(last=False)
        self._replays.move_to_end(key)
        return replay.launch(inputs)


class EagerRecorder:
    """Runs functions as they are, each time: on a CPU, and on a GPU to do without graphs.

    Args:
        device: Where they run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._busy_s = 0.0

    def record(self, function: Function, inputs: np.ndarray) -> Replay:
        """Keep a buffer for the inputs."""
        return _EagerReplay(function, torch.from_numpy(inputs).to(self.device, copy=True), self._add_busy)

    def run(self, function: Function, inputs: np.ndarray) -> Pending:
        """Run a function once."""
        return _Done(_without_gradient(function, torch.from_numpy(inputs).to(self.device)).cpu().numpy())

    def in_order(self) -> AbstractContextManager[object]:
        """Nothing is launched ahead: any order is the order of the calls."""
        return nullcontext()

    def wait_for(self, other: Recorder) -> None:
        """As for :meth:`in_order`, there is nothing to wait for."""

    def take_busy_s(self) -> float:
        """As :meth:`Recorder.take_busy_s`; with the host's own time, which on a CPU is the device's."""
        busy_s, self._busy_s = self._busy_s, 0.0
        return busy_s

    def _add_busy(self, seconds: float) -> None:
        self._busy_s += seconds


class CudaGraphRecorder:
    """Records functions as CUDA graphs, and runs everything in a stream of its own.

    A launch copies the inputs, replays and copies the results back, all without waiting; the host waits once, for the
    copied results. Two recorders on one GPU work side by side, the one with the smaller number of ``priority`` first.

    Args:
        device: A CUDA device.
        priority: Of the stream; -1 is urgent, 0 is not.
        stream: To use instead of a new one.
    """

    def __init__(self, device: torch.device, *, priority: int = 0, stream: "torch.cuda.Stream | None" = None) -> None:
        self.device = device
        self._stream = stream or torch.cuda.Stream(device, priority=priority)
        self._memory = torch.cuda.graph_pool_handle()
        self._launches: list[tuple[torch.cuda.Event, torch.cuda.Event]] | None = None

    def record(self, function: Function, inputs: np.ndarray) -> Replay:
        """Capture a function, after running it to load kernels and settle what its libraries choose."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream), torch.no_grad():
            buffer = torch.from_numpy(inputs).to(self.device)
            for _ in range(_NUM_WARM_UPS):
                function(buffer)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._memory, stream=self._stream):
                outputs = function(buffer)
        return _CudaReplay(graph, buffer, outputs, self._stream, self._timed)

    def run(self, function: Function, inputs: np.ndarray) -> Pending:
        """Run a function once, in the stream."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            outputs = _without_gradient(function, torch.from_numpy(inputs).to(self.device))
            return _PendingCopy(outputs, torch.empty_like(outputs, device="cpu", pin_memory=True), self._stream)

    def in_order(self) -> AbstractContextManager[object]:
        """Return the stream as a context."""
        return torch.cuda.stream(self._stream)

    def wait_for(self, other: Recorder) -> None:
        """As :meth:`Recorder.wait_for`, by an event between the streams."""
        if isinstance(other, CudaGraphRecorder):
            self._stream.wait_stream(other._stream)

    def take_busy_s(self) -> float:
        """As :meth:`Recorder.take_busy_s`, by events in the stream."""
        self._stream.synchronize()
        busy_ms = sum(begin.elapsed_time(end) for begin, end in self._launches or ())
        self._launches = []
        return busy_ms / 1e3

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Note when what is launched within begins and ends, once that is asked for."""
        if self._launches is None:
            yield
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record(self._stream)
        yield
        end.record(self._stream)
        self._launches.append((begin, end))


class _Done:
    def __init__(self, results: np.ndarray) -> None:
        self._results = results

    def result(self) -> np.ndarray:
        return self._results


class _EagerReplay:
    def __init__(self, function: Function, inputs: Tensor, add_busy: Callable[[float], None]) -> None:
        self._function, self._inputs, self._add_busy = function, inputs, add_busy

    def launch(self, inputs: np.ndarray) -> Pending:
        started = time.perf_counter()
        self._inputs.copy_(torch.from_numpy(inputs))
        results = _without_gradient(self._function, self._inputs).cpu().numpy().copy()
        self._add_busy(time.perf_counter() - started)
        return _Done(results)


class _CudaReplay:
    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        inputs: Tensor,
        outputs: Tensor,
        stream: torch.cuda.Stream,
        timed: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._graph, self._inputs, self._outputs, self._stream = graph, inputs, outputs, stream
        self._timed = timed
        self._host_inputs = torch.empty_like(inputs, device="cpu", pin_memory=True)
        self._host_outputs = torch.empty_like(outputs, device="cpu", pin_memory=True)
        self._last: _PendingCopy | None = None

    def launch(self, inputs: np.ndarray) -> Pending:
        if self._last is not None:
            self._last.result()  # the buffers on the host are free again
        self._host_inputs.copy_(torch.from_numpy(inputs))
        with torch.cuda.stream(self._stream):
            self._inputs.copy_(self._host_inputs, non_blocking=True)
            with self._timed():
                self._graph.replay()
            self._last = _PendingCopy(self._outputs, self._host_outputs, self._stream)
        return self._last


class _PendingCopy:
    """Results on their way to the host."""

    def __init__(self, outputs: Tensor, host: Tensor, stream: torch.cuda.Stream) -> None:
        host.copy_(outputs, non_blocking=True)
        self._host, self._done = host, torch.cuda.Event()
        self._done.record(stream)
        self._results: np.ndarray | None = None

    def result(self) -> np.ndarray:
        if self._results is None:
            self._done.synchronize()
            self._results = self._host.numpy().copy()
        return self._results


def _without_gradient(function: Function, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return function(inputs)
