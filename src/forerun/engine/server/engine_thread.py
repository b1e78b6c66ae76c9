"""The engine in a thread of its own: takes requests and cancellations between any two passes."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol

from forerun.core.errors import DeviceMemoryError
from forerun.core.protocols import LanguageModel
from forerun.engine.config import EngineConfig, Method
from forerun.engine.constraint_grammar import GrammarCompiler
from forerun.engine.core import EngineCore
from forerun.engine.metrics import DecodeCounters
from forerun.engine.outputs import StreamChunk
from forerun.engine.request import Request
from forerun.engine.sampling import SamplingParams
from forerun.engine.scheduler import SchedulerConfig
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.way_switch import WaySwitch
from forerun.engine.speculative.load import Load
from forerun.engine.speculative.ways import Way
from forerun.models.tokenizer import Tokenizer


class Resources(Protocol):
    """What the server needs of loaded models; see :class:`forerun.engine.resources.EngineResources`."""

    config: EngineConfig
    max_len: int
    target: LanguageModel
    grammars: GrammarCompiler

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's tokenizer."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids below it can be given."""
        ...

    @property
    def layer_ids(self) -> Sequence[int]:
        """Every layer of the target; none where cached states can't be copied in one piece."""
        ...

    def way_for_call(self, load: Load) -> Way:
        """Return the best way for such a load, entered."""
        ...

    def every_way(self) -> tuple[Way, ...]:
        """Return a way for each method that is ready."""
        ...

    def new_request(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        index: int,
        number: int,
        name: str,
        priority: int = 0,
    ) -> Request:
        """Return a request, checked against the model."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


def _no_methods() -> dict[str, int]:
    return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineState:
    """What ran at the end of a step.

    Attributes:
        num_running: Requests that hold a sequence.
        num_waiting: Requests that hold none.
        cache_usage: Share of the cache that running requests hold.
        methods: How many requests are on each method.
    """

    num_running: int = 0
    num_waiting: int = 0
    cache_usage: float = 0.0
    methods: dict[str, int] = field(default_factory=_no_methods)


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """A chunk on its way to the client.

    Attributes:
        chunk: The chunk.
        time_s: When it was decided, by ``time.perf_counter``.
        error: What went wrong, where the request failed.
    """

    chunk: StreamChunk
    time_s: float
    error: str | None = None


class EngineThread:
    """Runs the engine core for as long as there is work, and sleeps without.

    Args:
        resources: Loaded models; used by the thread only once it has started, but for the making of requests.
        config: The server's.
        deliver: Called on the thread with what each step decided.
        fail: Called on the thread if it ends by an error.
    """

    def __init__(
        self,
        resources: Resources,
        config: ServerConfig,
        *,
        deliver: Callable[[list[Delivery]], None],
        fail: Callable[[], None],
    ) -> None:
        self.counters = DecodeCounters()
        self.state = EngineState()
        self.num_steps = 0
        self._core = EngineCore(
            resources.target,
            verification=resources.config.speculative.verification,
            counters=self.counters,
            scheduler=SchedulerConfig(
                max_num_seqs=resources.target.num_sequences,
                max_num_batched_tokens=config.max_num_batched_tokens,
                max_cached_tokens=config.max_cached_tokens,
                reuses_prefixes=config.reuses_prefixes and len(resources.layer_ids) > 0,
                preempts=True,
            ),
            layer_ids=resources.layer_ids,
        )
        self.ways = WaySwitch(resources.every_way(), default=resources.config.method, choose=resources.way_for_call)
        self._deliver, self._fail = deliver, fail
        self._commands = SimpleQueue[Callable[[], None]]()
        self._requests: dict[int, Request] = {}
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="forerun-engine", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether it can still decode."""
        return self._thread.is_alive()

    @property
    def num_preempted(self) -> int:
        """How often a request was put aside for another, or for want of blocks."""
        return self._core.num_preempted

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, request: Request, method: Method | None) -> None:
        """Let a request wait for its turn; call it from any thread."""
        self.call(lambda: self._add(request, method))

    def abort(self, index: int) -> None:
        """End a request before the next pass, if it has not ended; call it from any thread."""
        self.call(lambda: self._abort(index))

    def call(self, action: Callable[[], None]) -> None:
        """Do something on the engine's thread between two passes; call it from any thread."""
        self._commands.put(action)

    def close(self) -> None:
        """End the thread after the present pass, and check that nothing was lost; requests stay unfinished."""
        self.call(self._stop)
        if self._thread.is_alive():
            self._thread.join()

    def check_integrity(self) -> None:
        """Assert that requests and sequences are accounted for; call it when the thread has ended."""
        self._core.check_integrity()
        assert self._requests.keys() == {request.index for request in self._core.running} or self._core.num_waiting

    def _run(self) -> None:
        is_over = False
        try:
            while self._take_commands():
                self._step()
            is_over = True
        finally:
            if not is_over:
                self._fail()

    def _take_commands(self) -> bool:
        """Carry commands out, waiting for one where there is nothing else to do; return whether to go on."""
        try:
            while True:
                self._commands.get(block=not self._core.has_work and not self._is_closing)()
        except Empty:
            return not self._is_closing

    def _step(self) -> None:
        self.ways.before_step(self._core)
        try:
            chunks = self._core.step()
        except (FloatingPointError, DeviceMemoryError) as error:
            self._give_up(str(error))
            return
        now = time.perf_counter()
        for chunk in chunks:
            if chunk.finish_reason is not None:
                self.ways.forget(self._requests.pop(chunk.index))
        self._note_state()
        if chunks:
            self._deliver(
                [Delivery(chunk=some, time_s=now, error=some.error if some.is_broken else None) for some in chunks]
            )

    def _add(self, request: Request, method: Method | None) -> None:
        self._requests[request.index] = request
        self._core.add_request(request, self.ways.way_for(request, method))

    def _abort(self, index: int, error: str | None = None) -> None:
        request = self._requests.pop(index, None)
        if request is None:
            return
        self.ways.forget(request)
        chunk = self._core.abort(request, is_sound=error is None)
        assert chunk is not None, "the core knows every request that has not ended"
        self._note_state()
        self._deliver([Delivery(chunk=chunk, time_s=time.perf_counter(), error=error)])

    def _give_up(self, error: str) -> None:
        """End the requests of a pass that failed, one that alone does not fit the memory among them; the others wait.

        What they computed is not reused: a pass that failed may have written it, or may not.
        """
        for request in self._core.running:
            self._abort(request.index, error)

    def _stop(self) -> None:
        self._is_closing = True

    def _note_state(self) -> None:
        running = self._core.running
        self.num_steps += 1
        self.state = EngineState(
            num_running=len(running),
            num_waiting=self._core.num_waiting,
            cache_usage=self._core.cache_usage,
            methods=self.ways.num_requests(),
        )
