"""The engine as asyncio code sees it: calls whose chunks are awaited, limits on how many, an end to wait for."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace

from forerun.core.errors import CompletionFailedError, EngineOverloadedError, EngineStoppedError, RequestError
from forerun.engine.config import Method
from forerun.engine.request import Request
from forerun.engine.sampling import SamplingParams
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.engine_thread import Delivery, EngineThread, Resources
from forerun.engine.server.metrics import ServerMetrics


@dataclass(slots=True, eq=False)
class _Choice:
    request: Request
    place: int
    last_s: float
    is_over: bool = False


@dataclass(slots=True, eq=False)
class Call:
    """What one client asked for: one completion or several.

    Attributes:
        started_s: When, by ``time.perf_counter``.
        requests: The engine's requests, in the order of the choices.
    """

    started_s: float
    requests: list[Request]
    deliveries: asyncio.Queue[tuple[int, Delivery] | Exception] = field(
        default_factory=asyncio.Queue["tuple[int, Delivery] | Exception"]
    )
    choices: list[_Choice] = field(default_factory=list[_Choice])


class AsyncEngine:
    """Feeds the engine's thread from an event loop and hands back what it decides.

    Args:
        resources: Loaded models. Closed with the engine.
        config: The server's.
        metrics: Learns what happens.
    """

    def __init__(self, resources: Resources, config: ServerConfig, metrics: ServerMetrics) -> None:
        self.resources, self.config, self._metrics = resources, config, metrics
        self.is_draining = False
        self._has_failed = False
        self._num_indices = 0
        self._choices: dict[int, tuple[Call, _Choice]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.thread = EngineThread(resources, config, deliver=self._deliver, fail=self._fail)
        metrics.watch(self.thread)

    @property
    def is_alive(self) -> bool:
        """Whether the engine runs; false from the moment that its failure is known, while its thread still ends."""
        return self.thread.is_alive and not self._has_failed

    @property
    def is_ready(self) -> bool:
        """Whether new requests are taken."""
        return self.is_alive and not self.is_draining

    @property
    def num_outstanding(self) -> int:
        """Completions that have not ended."""
        return len(self._choices)

    def start(self) -> None:
        """Start the engine's thread; call it on the event loop that will wait for it."""
        self._loop = asyncio.get_running_loop()
        self.thread.start()

    def check_open(self, num_new: int) -> None:
        """Refuse completions that could not be taken now; ask before work is done for them.

        Args:
            num_new: So many.

        Raises:
            EngineOverloadedError: Too many wait.
            EngineStoppedError: The engine is on its way out.
        """
        if not self.is_ready:
            raise EngineStoppedError("the server is shutting down or its engine has failed; ask another one")
        if self.num_outstanding + num_new > self.resources.target.num_sequences + self.config.max_waiting:
            raise EngineOverloadedError(
                f"{self.num_outstanding} completions run or wait, and {num_new} more are too many; come back later"
            )

    def submit(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        num_choices: int = 1,
        method: Method | None = None,
        priority: int = 0,
        cache_salt: str = "",
        records_outcomes: bool = False,
    ) -> Call:
        """Take a call, or refuse it as a whole.

        Args:
            prompts: Token ids of each.
            params: Of all completions.
            num_choices: Completions of each prompt: they have the same seed, drawn for each prompt if none is given,
                and different noise.
            method: How to decode; ``None``: as the server does.
            priority: Smaller goes first.
            cache_salt: Prefixes are shared with requests of the same salt only.
            records_outcomes: Whether chunks tell which outcomes were prepared.

        Raises:
            RequestError: A prompt or a parameter is at fault.
            EngineOverloadedError: As :meth:`check_open`.
            EngineStoppedError: As :meth:`check_open`.
        """
        self.check_open(len(prompts) * num_choices)
        self.thread.ways.check(method)
        call = Call(started_s=time.perf_counter(), requests=[])
        for place, prompt in enumerate(prompts):
            seeded = params
            for number in range(num_choices):
                self._num_indices += 1
                request = self.resources.new_request(
                    prompt,
                    seeded,
                    index=self._num_indices,
                    number=number,
                    name="prompt" if len(prompts) == 1 else f"prompt {place}",
                    priority=priority,
                )
                request.cache_salt, request.records_outcomes = cache_salt, records_outcomes
                # One drawn seed for all choices of a prompt, as a given one is: their numbers tell them apart. Another
                # for the next prompt, which may be the same text.
                seeded = replace(params, seed=request.params.seed)
                call.requests.append(request)
                call.choices.append(_Choice(request=request, place=len(call.choices), last_s=call.started_s))
        for choice in call.choices:
            self._choices[choice.request.index] = (call, choice)
            self.thread.submit(choice.request, method)
        self._idle.clear()
        self._metrics.num_prompt_tokens += sum(len(request.prompt_ids) for request in call.requests)
        return call

    async def deliveries(self, call: Call, *, timeout_s: float) -> AsyncGenerator[tuple[int, Delivery]]:
        """Yield each choice's chunks as they are decided; leaving the iterator early cancels what is left.

        Args:
            call: From :meth:`submit`; its deliveries are read once.
            timeout_s: Time for all of them, from now on.

        Yields:
            The place of the choice, and the chunk.

        Raises:
            EngineStoppedError: The engine has failed.
            CompletionFailedError: A choice could not be decoded.
            RequestError: A choice could not go on as its parameters ask.
            TimeoutError: Time is up.
        """
        num_left = len(call.choices)
        # One timer for the call: one for each chunk would cost as much as the chunk.
        alarm = asyncio.get_running_loop().call_later(timeout_s, call.deliveries.put_nowait, TimeoutError())
        try:
            while num_left > 0:
                item = await call.deliveries.get()
                if isinstance(item, Exception):
                    raise item
                place, delivery = item
                if delivery.error is not None:
                    raise CompletionFailedError(f"choice {place} could not be decoded: {delivery.error}")
                if delivery.chunk.error is not None:
                    raise RequestError(delivery.chunk.error)
                num_left -= delivery.chunk.finish_reason is not None
                yield place, delivery
        finally:
            alarm.cancel()
            self.cancel(call)

    def cancel(self, call: Call) -> None:
        """Cancel what has not ended of a call; it counts as gone at once."""
        for choice in call.choices:
            if not choice.is_over:
                self.thread.abort(choice.request.index)
                self._end(choice)

    def drain(self) -> None:
        """Take no more requests; those that run go on."""
        self.is_draining = True

    async def wait_until_idle(self) -> None:
        """Wait until every completion has ended."""
        await self._idle.wait()

    async def close(self) -> None:
        """End the thread and release the models."""
        self.is_draining = True
        await asyncio.to_thread(self.thread.close)
        await asyncio.to_thread(self.resources.close)

    def _deliver(self, deliveries: list[Delivery]) -> None:
        """Hand over to the event loop; runs on the engine's thread."""
        self._to_loop(lambda: self._take(deliveries))

    def _fail(self) -> None:
        self._to_loop(self._take_failure)

    def _to_loop(self, action: Callable[[], object]) -> None:
        assert self._loop is not None, "start() comes first"
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(action)

    def _take(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            found = self._choices.get(delivery.chunk.index)
            if found is None:
                continue  # cancelled meanwhile
            call, choice = found
            if delivery.chunk.token_ids:
                is_first = choice.last_s == call.started_s
                self._metrics.observe_tokens(
                    num_tokens=len(delivery.chunk.token_ids), wait_s=delivery.time_s - choice.last_s, is_first=is_first
                )
                choice.last_s = delivery.time_s
            if delivery.chunk.finish_reason is not None:
                self._end(choice)
            call.deliveries.put_nowait((choice.place, delivery))

    def _take_failure(self) -> None:
        self._has_failed = True
        for call in {id(call): call for call, _ in self._choices.values()}.values():
            call.deliveries.put_nowait(EngineStoppedError("the engine has failed; the server's log says why"))

    def _end(self, choice: _Choice) -> None:
        choice.is_over = True
        self._choices.pop(choice.request.index, None)
        if not self._choices:
            self._idle.set()
