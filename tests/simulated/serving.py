"""A whole server on a simulated model: real HTTP, real threads, a model of letters that can be held."""

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from types import SimpleNamespace

import numpy as np

from forerun.core.errors import RequestError
from forerun.core.rows import Rows
from forerun.engine.config import EngineConfig
from forerun.engine.constraint_grammar import GrammarCompiler
from forerun.engine.resources import EngineResources
from forerun.engine.server.app import ServerApp
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.run import DrainingServer, Served, bind
from forerun.engine.speculative.controller import FixedController
from forerun.engine.speculative.load import Load
from forerun.engine.speculative.ways import Way
from simulated.decoding import Way as SimulatedWay
from simulated.decoding import World
from simulated.models import SimulatedModel, history_law, markov_law, mixture_law

VOCAB_SIZE = 128
EOS = 0
_TARGET = mixture_law((0.6, history_law(VOCAB_SIZE, seed=1)), (1.0, markov_law(VOCAB_SIZE, seed=2, spread=2.5)))
_DRAFT = mixture_law((1.0, _TARGET), (0.3, history_law(VOCAB_SIZE, seed=3)))


def _without_ends(law):
    """Neither ends nor control characters: a text goes on until its limit, and can be read."""
    bias = np.zeros(VOCAB_SIZE, np.float32)
    bias[:32] = -1e4
    return lambda text: law(text) + bias


class LetterTokenizer:
    """One token a character of ASCII."""

    chat_template = "{{ messages }}"
    takes_tools = False

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return [ord(letter) if ord(letter) < VOCAB_SIZE else ord("?") for letter in text]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(chr(token) for token in ids if token != EOS or not skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id == EOS else bytes([token_id])

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] = (),
        variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        for name in variables or ():
            if name != "tone":
                raise RequestError(f"chat_template_kwargs.{name}: this model's chat template has no such variable")
        if messages[-1]["role"] == "assistant":
            raise RequestError("messages=[...]: the model's chat template refused them; end with the user")
        lines = [f"{message['role']}: {message['content']}" for message in messages]
        return self.encode("\n".join([*lines, *(f"{name}={value}" for name, value in (variables or {}).items())]))


class HeldModel(SimulatedModel):
    """A model whose passes wait while it is held; a pass may be made to fail."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.may_run = threading.Event()
        self.may_run.set()
        self._num_free: int | None = None
        self.fails_with: type[Exception] | None = None

    def hold_after(self, num_passes: int) -> None:
        """Let so many passes run, at least one, and hold the one after them."""
        self._num_free = num_passes

    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        assert self.may_run.wait(60), "held for good"
        if self.fails_with is not None:
            error, self.fails_with = self.fails_with, None
            raise error("the logits are no numbers")
        logits = super().forward(rows, logit_rows=logit_rows)
        if self._num_free is not None:
            self._num_free -= 1
            if self._num_free == 0:  # from here on, before anybody learns of this pass
                self._num_free = None
                self.may_run.clear()
        return logits


class SimulatedResources(EngineResources):
    """The real making of requests, around a simulated model with every method ready."""

    def __init__(self, *, num_sequences: int = 3, capacity: int = 256, method: str = "ssd") -> None:
        self.config = EngineConfig(method=method, max_num_seqs=num_sequences)
        self.max_len = capacity
        self._num_requests = 0
        self._checkpoint = SimpleNamespace(
            tokenizer=LetterTokenizer(),
            config=SimpleNamespace(vocab_size=VOCAB_SIZE, num_layers=1, num_kv_heads=1, head_dim=1),
            eos_ids=frozenset({EOS}),
            ensemble=None,
        )
        law = _without_ends(_TARGET)
        self.target = HeldModel(law=law, vocab_size=VOCAB_SIZE, num_sequences=num_sequences, capacity=capacity)
        world = World(
            target=law,
            draft=_without_ends(_DRAFT),
            vocab_size=VOCAB_SIZE,
            eos_ids=(EOS,),
            num_sequences=num_sequences,
            capacity=capacity,
            token_bytes=tuple(map(LetterTokenizer().token_bytes, range(VOCAB_SIZE))),
        )
        self.grammars = GrammarCompiler(LetterTokenizer(), vocab_size=VOCAB_SIZE)
        self.is_closed = False
        self._ways = tuple(
            Way(
                method=name,
                speculator=SimulatedWay(method=name).speculator(world, self.target),
                controller=FixedController(0 if name == "none" else 3),
                num_threads=1,
                pinned_to=(),
                num_cores=1,
            )
            for name in ("none", "sequential", "ssd")
        )
        self.choices = SimpleQueue()

    def way_for_call(self, load: Load) -> Way:
        """The ways in turn, so that open requests change between them."""
        self.choices.put(load)
        return self._ways[self.choices.qsize() % len(self._ways)]

    def every_way(self) -> tuple[Way, ...]:
        return self._ways

    def close(self) -> None:
        self.is_closed = True


class RunningServer:
    """A server that listens, in a thread with an event loop of its own.

    Attributes:
        url: Where it listens.
        app: The application.
        resources: Its model, if it has one of its own.
    """

    resources: SimulatedResources

    def __init__(self, app: Served, config: ServerConfig) -> None:
        self.app = app
        urls = SimpleQueue()
        self._listener = bind(config)
        self._server = DrainingServer(self.app, config, on_listening=urls.put)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="server")
        self._thread.start()
        self.url = urls.get(timeout=30)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve(sockets=[self._listener]))
        self._loop.close()

    @property
    def connections(self) -> set[asyncio.Protocol]:
        """Those that are open."""
        return self._server.server_state.connections

    def begin_drain(self) -> None:
        """As a SIGTERM does; nothing where the server has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._server.begin_drain, "test")

    def wait(self) -> None:
        """Wait until the server has ended."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._listener.close()

    def until(self, condition) -> None:
        """Wait, on the server's event loop, until its engine is as wanted; the model may be held."""

        async def wait() -> None:
            while not condition(self.app.engine):
                await asyncio.sleep(0.001)

        asyncio.run_coroutine_threadsafe(asyncio.wait_for(wait(), 60), self._loop).result(70)

    def idle(self) -> None:
        """Wait until every completion has ended on both sides."""
        asyncio.run_coroutine_threadsafe(self.app.engine.wait_until_idle(), self._loop).result(60)
        done = threading.Event()
        self.app.engine.thread.call(done.set)
        assert done.wait(60)


@contextmanager
def running_server(resources: SimulatedResources | None = None, **options) -> Iterator[RunningServer]:
    """Run a server; at its end nothing may be lost, and nothing left."""
    config = ServerConfig(port=0, **options)
    resources = resources or SimulatedResources()
    server = RunningServer(ServerApp(resources, config), config)
    server.resources = resources
    try:
        yield server
    finally:
        server.resources.target.may_run.set()
        server.begin_drain()
        server.wait()
    assert server.resources.is_closed
    server.app.engine.thread.check_integrity()
