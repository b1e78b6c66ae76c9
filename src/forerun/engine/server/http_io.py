"""Bodies in, events out, and work that ends when its client has gone."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from forerun.engine.server.api_error import ApiError

ResultT = TypeVar("ResultT")
_JSON: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
"""Made once: ``json.dumps`` makes one for each call that asks for other than the defaults."""


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """Return a request's body.

    JSON must be named as such: a page of another site can send any other type without asking the browser first.

    Raises:
        ApiError: 415, 413 or 408: another content type, too large, too slow.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"content-type is {kind[:100]!r}: send JSON, with content-type: application/json")
    too_large = ApiError(413, f"the body is larger than {max_bytes} bytes: send less")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:18]) > max_bytes:
        raise too_large
    parts: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                num_bytes += len(part)
                if num_bytes > max_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError as error:
        raise ApiError(408, f"the body had not arrived after {timeout_s:g} s: send it faster") from error
    except ClientDisconnect as error:
        raise ApiError(400, "the connection closed before the body's end") from error
    return b"".join(parts)


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, ResultT]) -> ResultT | None:
    """Do work for a client; if the client goes first, the work is cancelled and the result is ``None``."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_until_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for some in (task, watcher):
            some.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(task, watcher, return_exceptions=True)


def event(content: Mapping[str, Any] | str) -> bytes:
    """Return one server-sent event."""
    text = content if isinstance(content, str) else _JSON.encode(content)
    return f"data: {text}\n\n".encode()


class EventStream(Response):
    """Sends events as they come. If the client goes, the iterator is closed, which cancels what is behind it.

    Args:
        events: Each as :func:`event` gives it.
        on_end: Called at the end, however it comes, even if no event was ever asked for.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], *, on_end: Callable[[], None]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._on_end = events, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        try:
            with suppress(OSError):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await unless_disconnected(receive, self._write(send))
        finally:
            self._on_end()

    async def _write(self, send: Send) -> None:
        try:
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._events.aclose()
