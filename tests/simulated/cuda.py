"""Streams, events and graphs of ``torch.cuda`` on a CPU, for the code that drives them, and a look-out for races.

A graph keeps the operations that were made while it was captured, with their very tensors: a replay reads and writes
where they did, so what Python does meanwhile, or a tensor that was made afresh, shows up as on a GPU. While capturing,
a question to the host is refused.

What is asked for in a stream is done at once, but it is noted what on a GPU would be ordered: streams, events and the
host have vector clocks, and each storage its last accesses. Work that reads what another stream writes, or writes what
another reads or writes, with nothing that makes one wait for the other, is a race, and raised. So is a look of the host
at what may not have arrived. There is one device: what is wrong only between two of them does not show.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

_QUESTIONS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2"}
"""Operations that give the host a number, and wait for it."""

Clock = dict[object, int]
"""How much of the work of each stream is done, as far as someone knows."""


def _learn(clock: Clock, other: Clock) -> None:
    for stream, tick in other.items():
        clock[stream] = max(tick, clock.get(stream, 0))


class RaceError(AssertionError):
    """Two pieces of work that nothing orders use one memory."""


@dataclass
class _Memory:
    storage: torch.UntypedStorage
    """Kept, so that no other memory is taken for it."""
    written: Clock = field(default_factory=dict)
    read: Clock = field(default_factory=dict)
    launch: int = -1
    """Which launch wrote it last."""
    before: Clock = field(default_factory=dict)
    """What was written before that."""


class FakeCuda(TorchDispatchMode):
    """The stand-in; made by :func:`fake_cuda`, and looking out for races within a ``with``.

    Attributes:
        usual: The stream that work is in where nothing else is said.
        graphs: All that were captured.
        pools: Names given to memory of graphs.
        num_operations: That were looked at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.usual = self.current = Stream(self)
        self.host: Clock = {}
        self.graphs: list[CUDAGraph] = []
        self.num_operations = 0
        self._launch = 0
        self.pools: list[object] = []
        self._capturing: CUDAGraph | None = None
        self._memories: dict[int, _Memory] = {}
        self._pinned: set[int] = set()
        self._shared: set[int] = set()

    def share(self, *tensors: Tensor) -> None:
        """Let one launch write memory while another stream reads it: other parts of it, by the caller's word.

        What was written before that launch must still be waited for.
        """
        self._shared |= {key(tensor) for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if self._capturing is not None:
            if name in _QUESTIONS:
                raise RuntimeError(f"{name}: not permitted while a stream is capturing")
            out = func(*args, **kwargs)
            self._capturing.add(Operation(func, args, kwargs, out))
            return out
        out = func(*args, **kwargs)
        self.note(Operation(func, args, kwargs, out))
        if name in _QUESTIONS:
            _learn(self.host, self.current.clock)
        return out

    def note(self, operation: "Operation") -> None:
        """Check an operation that is done in the stream that work is in, and keep its accesses."""
        if operation.is_free:
            return
        self.num_operations += 1
        keys = {key(one) for one in operation.given}
        is_pinned = keys & self._pinned
        if is_pinned and all(one in self._pinned or one not in self._memories for one in keys):
            for one in operation.written:
                self.check_host(one, what=operation.name)
            return
        stream = self.current
        _learn(stream.clock, self.host)
        stream.tick()
        given, written = ([self._memory(one) for one in some] for some in (operation.given, operation.written))
        for memory in given:
            written_before = memory.before if self._is_shared(memory) else memory.written
            self._check(memory, written_before, f"{operation.name} in {stream.name} reads what is written")
            memory.read[stream] = stream.clock[stream]
        for memory in written:
            self._check(memory, memory.written, f"{operation.name} in {stream.name} writes what is written")
            if not self._is_shared(memory):
                self._check(memory, memory.read, f"{operation.name} in {stream.name} writes what is read")
            if memory.launch != self._launch:
                memory.launch, memory.before = self._launch, memory.written
            memory.written = {stream: stream.clock[stream]}

    def begin_launch(self) -> None:
        """Count what is done from now on as another launch."""
        self._launch += 1

    def _is_shared(self, memory: _Memory) -> bool:
        return memory.storage._cdata in self._shared

    def _check(self, memory: _Memory, accesses: Clock, what: str) -> None:
        for other, tick in accesses.items():
            if self.current.clock.get(other, 0) < tick:
                raise RaceError(f"{what} in {other.name} meanwhile")

    def check_host(self, tensor: Tensor, *, what: str) -> None:
        """Raise if the host uses memory that a stream may still write, or for a write, read."""
        memory = self._memory(tensor)
        for other, tick in (memory.written | memory.read).items():
            if self.host.get(other, 0) < tick:
                raise RaceError(f"{what} by the host while {other.name} may still be at it")

    def _memory(self, tensor: Tensor) -> _Memory:
        memory = self._memories.get(key(tensor))
        if memory is None:
            memory = self._memories[key(tensor)] = _Memory(tensor.untyped_storage())
        return memory

    @contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        before, self.current = self.current, stream
        self.begin_launch()
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: "CUDAGraph", *, pool: object, stream: "Stream", capture_error_mode: str) -> Iterator[None]:
        assert pool in self.pools
        assert stream is self.current
        assert capture_error_mode == "thread_local"
        self.graphs.append(graph)
        self._capturing = graph
        try:
            yield
        finally:
            self._capturing = None

    def graph_pool_handle(self) -> object:
        self.pools.append(object())
        return self.pools[-1]

    def device(self, _device: object) -> AbstractContextManager[None]:
        return nullcontext()

    def current_stream(self, _device: object = None) -> "Stream":
        return self.current

    def pin(self, tensor: Tensor) -> Tensor:
        self._pinned.add(key(tensor))
        self._memory(tensor)
        return tensor


def key(tensor: Tensor) -> int:
    """Return what tells a tensor's memory from others."""
    return tensor.untyped_storage()._cdata


class Operation:
    """One operation on tensors, and what it gave.

    Attributes:
        name: Of the operation.
        given: Tensors that it reads.
        written: Those that it writes: its own, and in place.
        is_free: Whether it gives a view, or memory that is not filled: nothing is done on a GPU.
    """

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        self._function, self._args, self._kwargs = function, args, kwargs
        self.name = function._schema.name
        self.given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        self._made = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        in_place = [
            value
            for argument, value in zip(function._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor)
        ]
        before = {key(one) for one in self.given}
        new = [one for one in self._made if key(one) not in before]
        self.written = [*in_place, *new]
        self.is_free = not self.written or "empty" in self.name

    def repeat(self) -> None:
        """Do it again on the same tensors."""
        again = self._function(*self._args, **self._kwargs)
        for old, new in zip(self._made, (one for one in tree_leaves(again) if isinstance(one, Tensor)), strict=True):
            if old.data_ptr() != new.data_ptr():
                old.copy_(new)


class Stream:
    """An order of work."""

    def __init__(self, cuda: FakeCuda, *, priority: int = 0, name: str = "the usual stream") -> None:
        self._cuda, self.priority, self.name = cuda, priority, name
        self.clock: Clock = {self: 0}

    def tick(self) -> None:
        self.clock[self] += 1

    def synchronize(self) -> None:
        _learn(self._cuda.host, self.clock)

    def wait_stream(self, other: "Stream") -> None:
        _learn(self.clock, other.clock)


class Event:
    """A place in the order of a stream's work."""

    def __init__(self, cuda: FakeCuda, *, enable_timing: bool = False) -> None:
        self._cuda, self._enable_timing = cuda, enable_timing
        self._stream: Stream | None = None
        self._clock: Clock = {}

    def record(self, stream: Stream) -> None:
        self._stream, self._clock = stream, dict(stream.clock)

    def synchronize(self) -> None:
        assert self._stream is not None, "an event that was never recorded"
        _learn(self._cuda.host, self._clock)

    def elapsed_time(self, end: "Event") -> float:
        assert self._enable_timing
        assert end._enable_timing
        assert self._stream is end._stream is not None
        return 0.25


class CUDAGraph:
    """Operations with their tensors."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self._operations: list[Operation] = []

    def add(self, operation: Operation) -> None:
        """Keep an operation; views of what is kept lie where they lay."""
        if not operation.is_free:
            self._operations.append(operation)

    def replay(self) -> None:
        """Do them again, in the stream that work is in."""
        self._cuda.begin_launch()
        with torch.no_grad(), _disable_current_modes():
            for operation in self._operations:
                operation.repeat()
                self._cuda.note(operation)
        self._cuda.begin_launch()


def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Put a stand-in in the place of ``torch.cuda``'s streams, events and graphs, and of memory pinned for them."""
    fake = FakeCuda()
    streams: list[Stream] = []

    def new_stream(_device: object = None, *, priority: int = 0) -> Stream:
        streams.append(Stream(fake, priority=priority, name=f"stream {len(streams) + 1}"))
        return streams[-1]

    for name in ("stream", "graph", "graph_pool_handle", "device", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch.cuda, "Stream", new_stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: Event(fake, **options))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: CUDAGraph(fake))
    empty_like, numpy, cpu = torch.empty_like, Tensor.numpy, Tensor.cpu

    def pinned(tensor: Tensor) -> Tensor:
        # By numpy, as the host does it: no stream's work.
        return fake.pin(torch.from_numpy(numpy(tensor).copy()))

    def pinned_like(like: Tensor, *, pin_memory: bool = False, **options: Any) -> Tensor:
        made = empty_like(like, **options)
        return fake.pin(made) if pin_memory else made

    def checked_numpy(tensor: Tensor) -> Any:
        fake.check_host(tensor, what="numpy()")
        return numpy(tensor)

    def waiting_cpu(tensor: Tensor) -> Tensor:
        copied = tensor.clone()
        _learn(fake.host, fake.current.clock)
        return cpu(copied)

    monkeypatch.setattr(torch, "empty_like", pinned_like)
    monkeypatch.setattr(Tensor, "numpy", checked_numpy)
    monkeypatch.setattr(Tensor, "cpu", waiting_cpu)
    monkeypatch.setattr(Tensor, "pin_memory", pinned)
    return fake
