"""One engine among several: answers requests that a front has taken, message by message."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from starlette.types import Message

from forerun.core.errors import EngineStoppedError
from forerun.engine.server.app import ServerApp
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.engine_thread import Resources
from forerun.engine.server.forwarded_request import END_OF_ANSWER, ForwardedRequest
from forerun.engine.server.json_log import LOGGER


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
        """Yield the answer as ASGI's messages; leaving early cancels the work.

        The one before the last is of type :data:`END_OF_ANSWER`: what the front is told beside the answer, while the
        client, who may leave with the last message, is still there.
        """
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
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    yield {"type": END_OF_ANSWER, "log": log, "replica": self._name}
                yield message
            await asyncio.wait({task})
            if (error := task.exception()) is not None:
                LOGGER.error("unexpected error", exc_info=error)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    def metrics(self) -> tuple[str, str]:
        """Return the replica's name, and its metrics in Prometheus's text format."""
        return self._name, self._server.metrics.text().decode()

    async def close(self) -> None:
        """End the engine and release the models."""
        await self._server.engine.close()
