"""Functions of fixed shape, recorded once for each shape and replayed on new numbers.

On a GPU a recorded function is a CUDA graph: one launch instead of hundreds, and no Python while it runs. What makes a
function fit for that is the same everywhere: its inputs are one buffer that stays where it is, its shapes are those of
its key, its results lie in a tensor that the next replay overwrites, and it asks nothing of the host. So the pool and
all that is built on it run on a CPU too, by :class:`EagerRecorder`.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from forerun.core.errors import DeviceMemoryError
from forerun.core.protocols import Pending

Function = Callable[[Tensor], Tensor]
"""From the buffer of inputs, int64 ``[size]``, to one tensor of results."""

_T = TypeVar("_T")
_MAX_GRAPHS: Final = 256


class Replay(Protocol):
    """A recorded function with its buffers."""

    def launch(self, inputs: np.ndarray) -> Pending:
        """Run on new inputs, int64 of the size that was recorded; may return before it has run."""
        ...


class MemoryPact(Protocol):
    """What processes that share a model do where memory may be short in one of them, and the pass must fail in all."""

    def summed(self, work: Callable[[], Tensor], like: Tensor) -> Tensor:
        """Return what a part of a pass gives, which ends with a sum over the processes.

        Where memory is short for it here, this process takes part in the sum with zeros, so that no other waits for
        it; the pass is for nothing then, and :meth:`any_failed` says so.

        Args:
            work: The part.
            like: A tensor of the shape and type of its result.
        """
        ...

    def any_failed(self) -> bool:
        """Return whether memory was short in any process since the last call; all of them ask at the same places."""
        ...


class Recorder(Protocol):
    """Makes functions replayable, and runs others in the same order of work.

    Attributes:
        device: Where functions run.
        replays_allocate: Whether a replay takes memory, which may be short, and is not only given what it had when it
            was recorded.
    """

    device: torch.device
    replays_allocate: bool

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

    def catch_up(self) -> None:
        """Let what is launched from now on begin when all that torch was asked for outside of it is done.

        For tensors that are filled outside and read by what is launched.
        """
        ...

    def finish(self) -> None:
        """Wait for all that has been launched, whose tensors may go then."""
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
        pact: What processes that share a model do together when memory is short in one of them; ``None``: this one is
            alone.

    Attributes:
        num_recorded: Functions recorded so far.
    """

    def __init__(self, recorder: Recorder, *, max_graphs: int = _MAX_GRAPHS, pact: MemoryPact | None = None) -> None:
        self._recorder, self._max_graphs, self._pact = recorder, max_graphs, pact
        self._replays: OrderedDict[Hashable, Replay] = OrderedDict()
        self.num_recorded = 0

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
        replay = self._replays.get(key)
        if replay is None:
            replay = self._with_memory(lambda: self._recorder.record(function, inputs))
            self.num_recorded += 1
            self._replays[key] = replay
            if len(self._replays) > self._max_graphs:
                self._replays.popitem(last=False)
        self._replays.move_to_end(key)
        if self._recorder.replays_allocate:
            return self._with_memory(lambda: replay.launch(inputs))
        return replay.launch(inputs)

    def run(self, function: Function, inputs: np.ndarray) -> Pending:
        """Run a function once, of inputs of any size; as :meth:`launch` where memory is short.

        Raises:
            DeviceMemoryError: As :meth:`launch`.
        """
        return self._with_memory(lambda: self._recorder.run(function, inputs))

    def clear(self) -> None:
        """Drop what is recorded, when it has run."""
        self._recorder.finish()
        self._replays.clear()

    def _with_memory(self, work: Callable[[], _T]) -> _T:
        """Work; where memory is short, drop what is recorded and repeat, together with all that share the model."""
        for _ in range(2):
            try:
                done = work()
            except RuntimeError as error:
                # In a pact, what is raised all the same came between exchanges: the others are no longer in step.
                if self._pact is not None or not is_out_of_memory(error):
                    raise
            else:
                if self._pact is None or not self._pact.any_failed():
                    return done
                del done
            # Not within the except above: the error holds the frames that it came from, and what these had computed.
            self.clear()
            if self._recorder.device.type == "cuda":
                torch.cuda.empty_cache()
        raise DeviceMemoryError(
            f"a pass does not fit into the memory of {self._recorder.device} beside weights and cache; set a smaller "
            "kv_cache_bytes, max_num_seqs or max_model_len"
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error means that a device has too little memory.

    torch's allocator has an error of its own. The driver, which makes graphs, and cuBLAS say it in words.
    """
    words = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in words or "ALLOC_FAILED" in words:
        return True
    # The end of a capture that failed has an error of its own to tell.
    before = error.__context__
    return isinstance(before, RuntimeError) and is_out_of_memory(before)


class EagerRecorder:
    """Runs functions as they are, each time: on a CPU, and on a GPU to do without graphs.

    Args:
        device: Where they run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.replays_allocate = True
        self._busy_s = 0.0

    def record(self, function: Function, inputs: np.ndarray) -> Replay:
        """Keep a buffer for the inputs."""
        return _EagerReplay(function, torch.from_numpy(inputs).to(self.device, copy=True), self._add_busy)

    def run(self, function: Function, inputs: np.ndarray) -> Pending:
        """Run a function once."""
        return _Done(without_gradient(function, torch.from_numpy(inputs).to(self.device)).cpu().numpy())

    def in_order(self) -> AbstractContextManager[object]:
        """Nothing is launched ahead: any order is the order of the calls."""
        return nullcontext()

    def wait_for(self, other: Recorder) -> None:
        """As for :meth:`in_order`, there is nothing to wait for."""

    def catch_up(self) -> None:
        """As for :meth:`in_order`."""

    def finish(self) -> None:
        """Results are read before a call returns."""

    def take_busy_s(self) -> float:
        """As :meth:`Recorder.take_busy_s`; with the host's own time, which on a CPU is the device's."""
        busy_s, self._busy_s = self._busy_s, 0.0
        return busy_s

    def _add_busy(self, seconds: float) -> None:
        self._busy_s += seconds


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
        results = without_gradient(self._function, self._inputs).cpu().numpy().copy()
        self._add_busy(time.perf_counter() - started)
        return _Done(results)


def without_gradient(function: Function, inputs: Tensor) -> Tensor:
    """Return what a function gives for inputs, and keep nothing for a gradient."""
    with torch.no_grad():
        return function(inputs)
