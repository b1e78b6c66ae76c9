"""Runs the application with uvicorn, and ends it gracefully: what runs may finish, what is new gets 503."""

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, cast

import uvicorn
from starlette.types import ASGIApp

from forerun.core.errors import ConfigError
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.guarded_protocol import GuardedProtocol
from forerun.engine.server.json_log import log_event

_FLUSH_S = 3
"""After the last completion, time for its answer to reach a slow client."""


class Drainable(Protocol):
    """What runs requests, as far as their end is concerned."""

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused."""
        ...

    @property
    def num_outstanding(self) -> int:
        """Requests that have not ended."""
        ...

    def drain(self) -> None:
        """Take no more requests; those that run go on."""
        ...

    async def wait_until_idle(self) -> None:
        """Wait until all have ended."""
        ...


class Served(Protocol):
    """An application, and what runs its requests."""

    asgi: ASGIApp

    @property
    def engine(self) -> Drainable:
        """What runs the requests."""
        ...


class DrainingServer(uvicorn.Server):
    """A uvicorn server that, on the first SIGTERM or SIGINT, waits for running requests; a second one ends it at once.

    Args:
        app: The application.
        config: The server's.
        on_listening: Called with the server's URL once it listens.
    """

    def __init__(self, app: Served, config: ServerConfig, *, on_listening: Callable[[str], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app.asgi,
                # uvicorn calls it as it would a class.
                http=cast("type[asyncio.Protocol]", partial(GuardedProtocol, limits=config)),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                root_path=config.root_path,
                ssl_certfile=config.tls_certificate,
                ssl_keyfile=config.tls_key,
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
            url = _url(sockets[0].getsockname(), self._options)
            log_event("listening", url=url)
            self._on_listening(url)

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
        ConfigError: It is taken, not allowed, or none of this machine's; or TLS's files are not what they should be.
    """
    if config.tls_certificate is not None and config.tls_key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                config.tls_certificate, config.tls_key, _no_password
            )
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"tls_certificate={config.tls_certificate!r}, tls_key={config.tls_key!r}: are no certificate chain and "
                f"its unencrypted key in PEM ({error})"
            ) from error
    if config.unix_socket is not None:
        return _bind_unix(config.unix_socket)
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


def _no_password() -> str:
    """Give the empty password: a key with one is refused, and nobody is asked at a terminal."""
    return ""


def _bind_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).is_socket() and not _is_listened_on(path):
            Path(path).unlink()  # left by a server that was killed
        listener.bind(path)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"unix_socket={path!r}: cannot be listened on ({error.strerror or error}); name a path that is free, in a "
            "folder you can write to"
        ) from error
    return listener


def _is_listened_on(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
    return True


def _url(address: Any, config: ServerConfig) -> str:
    """Return where the server is to be found."""
    scheme = "http" if config.tls_certificate is None else "https"
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address[:2]
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}:{port}{config.root_path}"


def serve(app: Served, config: ServerConfig, listener: socket.socket, *, on_listening: Callable[[str], None]) -> None:
    """Serve until a signal ends it.

    Args:
        app: The application.
        config: The server's.
        listener: From :func:`bind`.
        on_listening: Called with the server's URL once it listens.
    """
    try:
        DrainingServer(app, config, on_listening=on_listening).run(sockets=[listener])
    finally:
        if config.unix_socket is not None:
            Path(config.unix_socket).unlink(missing_ok=True)
