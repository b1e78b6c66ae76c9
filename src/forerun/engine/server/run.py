"""Runs the application with uvicorn, and ends it gracefully: what runs may finish, what is new gets 503."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from forerun.core.errors import ConfigError
from forerun.engine.server.app import ServerApp
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.json_log import log_event

_FLUSH_S = 3
"""After the last completion, time for its answer to reach a slow client."""


class DrainingServer(uvicorn.Server):
    """A uvicorn server that, on the first SIGTERM or SIGINT, waits for running requests; a second one ends it at once.

    Args:
        app: The application.
        config: The server's.
        on_listening: Called with the server's URL once it listens.
    """

    def __init__(self, app: ServerApp, config: ServerConfig, *, on_listening: Callable[[str], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app.asgi,
                http="h11",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=config.max_connections,
                timeout_graceful_shutdown=_FLUSH_S,
            )
        )
        self._engine, self._options, self._on_listening = app.engine, config, on_listening
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if sockets:
            host, port = sockets[0].getsockname()[:2]
            name = f"[{host}]" if ":" in host else host
            log_event("listening", host=host, port=port)
            self._on_listening(f"http://{name}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self._engine.is_draining or self._loop is None:
            super().handle_exit(sig, frame)
            return
        self._loop.call_soon_threadsafe(self.begin_drain, signal.Signals(sig).name)

    def begin_drain(self, reason: str) -> None:
        """Take no more requests, and stop when the last has ended or time is up; call it on the event loop."""
        log_event("draining", reason=reason, num_outstanding=self._engine.num_outstanding)
        self._engine.drain()
        self._drain = asyncio.create_task(self._stop_when_idle())

    async def _stop_when_idle(self) -> None:
        try:
            async with asyncio.timeout(self._options.drain_timeout_s):
                await self._engine.wait_until_idle()
        except TimeoutError:
            log_event("drain timed out", level=logging.WARNING, num_outstanding=self._engine.num_outstanding)
        self.should_exit = True


def bind(config: ServerConfig) -> socket.socket:
    """Take the server's address, before models are loaded for it; nothing listens yet.

    Raises:
        ConfigError: It is taken, not allowed, or none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(
            f"host={config.host!r}, port={config.port}: cannot be listened on ({error.strerror}); choose another port, "
            "0 for a free one"
        ) from error
    return listener


def serve(
    app: ServerApp, config: ServerConfig, listener: socket.socket, *, on_listening: Callable[[str], None]
) -> None:
    """Serve until a signal ends it.

    Args:
        app: The application.
        config: The server's.
        listener: From :func:`bind`.
        on_listening: Called with the server's URL once it listens.
    """
    DrainingServer(app, config, on_listening=on_listening).run(sockets=[listener])
