"""The HTTP side of a server whose engines run elsewhere: lets requests in, hands them on, passes answers back."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forerun.core.errors import EngineOverloadedError, EngineStoppedError
from forerun.engine.server.api_error import ApiError, overloaded, unavailable
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.forwarded_request import END_OF_ANSWER, ForwardedRequest
from forerun.engine.server.gate import Gate
from forerun.engine.server.http_io import read_body, unless_disconnected
from forerun.engine.server.merged_metrics import merged_metrics
from forerun.engine.server.metrics import ServerMetrics
from forerun.engine.server.prompt_key import prompt_key
from forerun.engine.server.site import application, page_routes

_POSTS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")
_FORWARDED_HEADERS = frozenset({b"content-type", b"x-request-id"})


class Replicas(Protocol):
    """Engines elsewhere, and the way to them."""

    def ask(self, request: ForwardedRequest, key: str) -> AsyncGenerator[Message]:
        """Give a request to one, the same for the same key where it can; yield what :meth:`Replica.answer` does."""
        ...

    def num_running(self) -> int:
        """Return how many can answer; called aside from the event loop."""
        ...

    async def metrics(self) -> Mapping[str, str]:
        """Return the metrics of each that answers, by its name."""
        ...


class Outstanding:
    """Counts requests that are under way, as a server that drains asks for it.

    Attributes:
        is_draining: Whether new ones are refused.
        num_outstanding: Requests under way.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self.num_outstanding = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        """Take note of a request."""
        self.num_outstanding += 1
        self._idle.clear()

    def end(self) -> None:
        """Take note of its end."""
        self.num_outstanding -= 1
        if self.num_outstanding == 0:
            self._idle.set()

    def drain(self) -> None:
        """Take no more requests; those under way go on."""
        self.is_draining = True

    async def wait_until_idle(self) -> None:
        """Wait until none is under way."""
        await self._idle.wait()


class Front:
    """The application that clients see.

    Args:
        replicas: What answers.
        config: The server's.

    Attributes:
        asgi: What an ASGI server runs.
        engine: Counts what is under way.
    """

    def __init__(self, replicas: Replicas, config: ServerConfig) -> None:
        self._replicas, self._config = replicas, config
        self._metrics = ServerMetrics()
        self.engine = Outstanding()
        routes = [
            *page_routes(),
            *(Route(path, self._post, methods=["POST"]) for path in _POSTS),
            Route("/v1/models", self._get),
            Route("/v1/models/{name:path}", self._get),
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._show_metrics),
        ]
        paths = [route.path for route in routes if isinstance(route, Route) and "{" not in route.path]
        self.asgi: ASGIApp = Gate(application(routes, config), self._metrics, routes=paths)

    async def _post(self, request: Request) -> Response:
        config = self._config
        body = await read_body(request, max_bytes=config.max_body_bytes, timeout_s=config.body_timeout_s)
        return self._forward(request, body)

    async def _get(self, request: Request) -> Response:
        return self._forward(request, b"")

    def _forward(self, request: Request, body: bytes) -> Response:
        if self.engine.is_draining:
            raise unavailable(EngineStoppedError("the server is shutting down; ask another one"))
        forwarded = ForwardedRequest(
            method=request.method,
            path=str(request.scope["path"]).removeprefix(request.scope.get("root_path", "")),
            headers=tuple((name, value) for name, value in request.headers.raw if name in _FORWARDED_HEADERS),
            body=body,
        )
        messages = self._replicas.ask(forwarded, prompt_key(body))
        return _Relay(messages, self.engine, request.scope["state"]["log"])

    async def _health(self, request: Request) -> Response:
        num_running = await asyncio.to_thread(self._replicas.num_running)
        content: dict[str, Any] = {"status": "ok" if num_running else "failed", "replicas": num_running}
        return JSONResponse(content, status_code=200 if num_running else 503)

    async def _ready(self, request: Request) -> Response:
        is_ready = not self.engine.is_draining and await asyncio.to_thread(self._replicas.num_running) > 0
        return JSONResponse({"status": "ready" if is_ready else "not ready"}, status_code=200 if is_ready else 503)

    async def _show_metrics(self, request: Request) -> Response:
        texts = {"front": self._metrics.text().decode(), **await self._replicas.metrics()}
        return Response(merged_metrics(texts), media_type="text/plain; version=0.0.4; charset=utf-8")


class _Relay(Response):
    """Passes a replica's messages on; if the client goes, the replica is told to stop.

    Args:
        messages: The replica's.
        outstanding: Counts it.
        log: Fields of the log line; gets what the replica tells beside the answer.
    """

    def __init__(self, messages: AsyncGenerator[Message], outstanding: Outstanding, log: dict[str, Any]) -> None:
        super().__init__()
        self._messages, self._outstanding, self._log = messages, outstanding, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        self._outstanding.begin()
        try:
            await unless_disconnected(receive, self._pass_on(scope, receive, send))
        finally:
            self._outstanding.end()

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False
        try:
            async for message in self._messages:
                if message["type"] == END_OF_ANSWER:
                    self._log |= message["log"] | {"replica": message["replica"]}
                else:
                    has_begun = True
                    await send(message)
        except (EngineOverloadedError, EngineStoppedError) as error:
            if has_begun:
                raise  # the connection closes before the end, which says it
            answer: ApiError = overloaded(error) if isinstance(error, EngineOverloadedError) else unavailable(error)
            await answer.response()(scope, receive, send)
        finally:
            await self._messages.aclose()
