"""A stand-in for CUDA graphs: functions are traced once into tensor operations, and these are replayed.

As with a graph, what Python did while the function was recorded is not done again: numbers that it read, branches that
it took and buffers that it made are what they were. A question to the host while recording (``item``, ``nonzero``) is
refused.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from forerun.models.graph_pool import Recorder

Function = Callable[[Tensor], Tensor]


class TracingRecorder:
    """A ``Recorder`` on the CPU that replays traces."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.replays_allocate = False
        self.num_records = 0
        self.num_runs = 0

    def record(self, function: Function, inputs: np.ndarray) -> "TracedReplay":
        self.num_records += 1
        buffer = torch.from_numpy(inputs.copy())
        with torch.no_grad():
            return TracedReplay(make_fx(function)(buffer), buffer)

    def run(self, function: Function, inputs: np.ndarray) -> "Results":
        self.num_runs += 1
        with torch.no_grad():
            return Results(function(torch.from_numpy(inputs)).numpy())

    def in_order(self) -> AbstractContextManager[object]:
        return nullcontext()

    def wait_for(self, other: Recorder) -> None:
        pass

    def catch_up(self) -> None:
        pass

    def finish(self) -> None:
        pass


class TracedReplay:
    def __init__(self, trace: Function, buffer: Tensor) -> None:
        self._trace, self._buffer = trace, buffer

    def launch(self, inputs: np.ndarray) -> "Results":
        self._buffer.copy_(torch.from_numpy(inputs))
        with torch.no_grad():
            return Results(self._trace(self._buffer).numpy().copy())


class Results:
    def __init__(self, results: np.ndarray) -> None:
        self._results = results

    def result(self) -> np.ndarray:
        return self._results
