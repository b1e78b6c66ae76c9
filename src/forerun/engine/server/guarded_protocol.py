"""uvicorn's HTTP protocol with an end to all waiting for a client, and its refusals in the API's shape."""

import asyncio
import json
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from forerun.engine.server.api_error import RETRY_AFTER_S, ApiError
from forerun.engine.server.config import ServerConfig

_BUSY = ApiError(
    503,
    "too many connections are open: close some, or come back later",
    code="unavailable",
    headers={"retry-after": RETRY_AFTER_S, "connection": "close"},
)


class GuardedProtocol(H11Protocol):
    """One connection. What is refused before there is a request is refused here.

    Headers must be whole in time, counted from their first byte or from the connection's begin; a client that has asked
    must take its answer, or is cut off, which ends what runs for it. What is left of a body when the answer is out must
    come in time, too.

    Args:
        config: uvicorn's.
        server_state: uvicorn's.
        app_state: uvicorn's.
        _loop: uvicorn's.
        limits: The server's.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ServerConfig,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._served: ASGIApp = self.app  # pyright: ignore[reportUnknownMemberType] (uvicorn leaves it open)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self._body_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection; the time for its first headers begins."""
        super().connection_made(transport)
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._header_timer = _stopped(self._header_timer)
        self._write_timer = _stopped(self._write_timer)
        self._close_timer = _stopped(self._close_timer)
        self._body_timer = _stopped(self._body_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        super().data_received(data)
        self._watch_headers()

    def handle_events(self) -> None:
        """Answer what has come; 503 where there are more connections than may be."""
        self.app: ASGIApp = _busy if len(self.connections) > self._limits.max_connections else self._served
        super().handle_events()

    def on_response_complete(self) -> None:
        """Go on with the connection's next request, once the rest of this one's body has come."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._body_timer = self.loop.call_later(self._limits.body_timeout_s, self._body_late, self.cycle)
        self._watch_headers(is_idle_allowed=True)

    def pause_writing(self) -> None:
        """Take note that the client does not read as fast as it is told."""
        super().pause_writing()
        _stopped(self._write_timer)
        self._write_timer = self.loop.call_later(self._limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Take note that the client reads again."""
        self._write_timer = _stopped(self._write_timer)
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, read to its end or not."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no HTTP, or headers without end."""
        self._refuse(ApiError(400, f"{msg} See RFC 9112 for what is HTTP; headers may have 16 KiB"))

    def _watch_headers(self, *, is_idle_allowed: bool = False) -> None:
        """Let the time for headers run exactly while they are awaited."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._header_timer = _stopped(self._header_timer)
        elif self._header_timer is None and not (is_idle_allowed and not self.conn.trailing_data[0]):
            self._header_timer = self.loop.call_later(self._limits.header_timeout_s, self._headers_late)

    def _headers_late(self) -> None:
        self._header_timer = None
        if self.transport.is_closing():
            return
        if not self.conn.trailing_data[0]:  # a connection opened in advance: it has asked for nothing yet
            self.transport.close()
            return
        self._refuse(ApiError(408, f"headers had not arrived after {self._limits.header_timeout_s:g} s: send faster"))

    def _body_late(self, cycle: RequestResponseCycle) -> None:
        """Cut a client off that has its answer and still sends the body; uvicorn would wait for its next byte."""
        if self.cycle is cycle and self.conn.their_state is h11.SEND_BODY:
            self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answer before there is a request, or while its body comes, and close."""
        self._header_timer = _stopped(self._header_timer)
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:  # an answer is under way: it ends here
            self.transport.close()
            return
        content = json.dumps(error.content()).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(content))),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=error.status, headers=headers),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        """Let what is written reach the client, but not for ever."""
        _stopped(self._close_timer)
        self._close_timer = self.loop.call_later(self._limits.write_timeout_s, self.transport.abort)


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    """Stop a timer, if there is one."""
    if timer is not None:
        timer.cancel()


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    await _BUSY.response()(scope, receive, send)
