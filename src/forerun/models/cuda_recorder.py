"""CUDA graphs: functions of fixed shape captured once and replayed, in a stream of their own.

What waits for what: a launch copies inputs, replays and copies results in one stream, so they follow each other and the
launches before. The host waits for the copy of the results, and before it overwrites the pinned inputs of a graph, for
the last launch of that graph. A second stream waits only where :meth:`CudaGraphRecorder.wait_for` says so.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

import numpy as np
import torch
from torch import Tensor

from forerun.core.protocols import Pending
from forerun.models.graph_pool import Function, Recorder, Replay, without_gradient

_NUM_WARM_UPS: Final = 2


class CudaGraphRecorder:
    """Records functions as CUDA graphs, and runs everything in a stream of its own.

    A launch copies the inputs, replays and copies the results back, all without waiting; the host waits once, for the
    copied results. Two recorders on one GPU work side by side, the one with the smaller number of ``priority`` first.

    Args:
        device: A CUDA device.
        priority: Of the stream; -1 is urgent, 0 is not.
        stream: To use instead of a new one.
        keep: What has to live as long as the stream does.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        priority: int = 0,
        stream: "torch.cuda.Stream | None" = None,
        keep: object | None = None,
    ) -> None:
        self.device, self._keep = device, keep
        self.replays_allocate = False
        self._stream = stream or torch.cuda.Stream(device, priority=priority)
        self._memory = torch.cuda.graph_pool_handle()
        self._newest: weakref.ref[_CudaReplay] | None = None
        self._launches: list[tuple[torch.cuda.Event, torch.cuda.Event]] | None = None

    def record(self, function: Function, inputs: np.ndarray) -> Replay:
        """Capture a function, after running it to load kernels and settle what its libraries choose."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream), torch.no_grad():
            buffer = torch.from_numpy(inputs).to(self.device)
            for _ in range(_NUM_WARM_UPS):
                function(buffer)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            if self._newest is not None and self._newest() is None:
                # What was recorded has gone, and with it the graphs' memory: torch wants a new name for the next.
                self._memory = torch.cuda.graph_pool_handle()
            # Only this thread has to keep from what a capture forbids: others may serve, or watch over exchanges.
            with torch.cuda.graph(graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"):
                outputs = function(buffer)
        replay = _CudaReplay(graph, buffer, outputs, self._stream, self._timed)
        self._newest = weakref.ref(replay)
        return replay

    def run(self, function: Function, inputs: np.ndarray) -> Pending:
        """Run a function once, in the stream."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            # Pinned, so that the host need not wait for what was launched before; torch keeps it until it is copied.
            given = torch.from_numpy(inputs).pin_memory().to(self.device, non_blocking=True)
            outputs = without_gradient(function, given)
            return _PendingCopy(outputs, torch.empty_like(outputs, device="cpu", pin_memory=True), self._stream)

    def in_order(self) -> AbstractContextManager[object]:
        """Return the stream as a context."""
        return torch.cuda.stream(self._stream)

    def wait_for(self, other: Recorder) -> None:
        """As :meth:`Recorder.wait_for`, by an event between the streams."""
        if isinstance(other, CudaGraphRecorder):
            self._stream.wait_stream(other._stream)

    def catch_up(self) -> None:
        """As :meth:`Recorder.catch_up`: a stream of torch's does not wait for the usual one by itself."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def finish(self) -> None:
        """As :meth:`Recorder.finish`."""
        self._stream.synchronize()

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
