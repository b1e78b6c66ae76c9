"""One engine among several: answers requests that a front has taken, message by message."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import Message

from forerun.core.errors import EngineStoppedError
from forerun.engine.server.app import ServerApp
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.engine_thread import Resources
from forerun.engine.server.json_log import LOGGER

END_OF_ANSWER = "forerun.end"
"""Type of the last message: what the front is told beside the answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardedRequest:
    """An HTTP request that has been read and let in.

    Attributes:
        method: HTTP method.
        path: Without what a proxy cuts off.
        headers: As ASGI has them.
        body: Whole.
    """

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def scope(self, log: dict[str, Any]) -> dict[str, Any]:
        """Return the request as ASGI has it; routes put fields for the log line into ``log``."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": list(self.headers),
            "state": {"log": log},
        }


class Replica:
    """An engine and the API over it, without HTTP.

    Args:
        resources: Loaded models; closed by :meth:`close`.
        config: The server's, less what the front does: keys, origins.
        name: Tells it from the others.
    """

    def __init__(self, resources: Resources, config: ServerConfig, *, name: str) -> None:
        self._server, self._name = ServerApp(resources, config), name

    def start(self) -> None:
        """Start the engine; call it on the event loop that answers."""
        self._server.engine.start()

    def check_health(self) -> None:
        """Say whether it can go on.

        Raises:
            EngineStoppedError: It can't, and should be begun anew.
        """
        if not self._server.engine.is_alive:
            raise EngineStoppedError("the engine has failed; its log says why")

    async def answer(self, request: ForwardedRequest) -> AsyncGenerator[Message]:
        """Yield the answer as ASGI's messages, then one with what the front is told; leaving early cancels the work."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        log: dict[str, Any] = {}
        bodies: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]

        async def receive() -> Message:
            if not bodies:
                await asyncio.Event().wait()  # a client that goes ends this task
            return bodies.pop()

        async def run() -> None:
            try:
                await self._server.application(request.scope(log), receive, messages.put)
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(run())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await asyncio.wait({task})
            if (error := task.exception()) is not None:
                LOGGER.error("unexpected error", exc_info=error)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
        yield {"type": END_OF_ANSWER, "log": log, "replica": self._name, "metrics": self._server.metrics.text()}

    async def close(self) -> None:
        """End the engine and release the models."""
        await self._server.engine.close()


def replica_logging() -> None:
    """Let a replica's warnings be heard where its process writes; the front logs requests."""
    LOGGER.setLevel(logging.WARNING)
