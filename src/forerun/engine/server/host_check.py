"""Lets requests in by the name under which they ask for this server.

A page of another site that has its own name point at this machine is, to a browser, a page of this server: no rule
about origins keeps it out. The name in its requests does.
"""

from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from forerun.engine.server.api_error import ApiError
from forerun.engine.server.config import ServerConfig


class HostCheck:
    """Answers 403 to who asks for another name than this server's.

    Addresses are let in, as no site has one for a name, and ``localhost``. Other names are where they are listed, or
    where the server listens to more than this machine and none is listed.

    Args:
        app: What answers the others.
        config: The server's.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in config.allowed_hosts)
        self._allows_any = not config.allowed_hosts and (config.unix_socket is not None or not _is_local(config.host))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or self._allows_any:
            await self._app(scope, receive, send)
            return
        header = Headers(scope=scope).get("host", "")
        name = host_name(header)
        if not header or name in self._names or _is_own(name):  # every browser sends one
            await self._app(scope, receive, send)
            return
        error = ApiError(
            403,
            f"this server does not go by the name {header[:100]!r}; if it should, start it with --allowed-hosts NAME",
            code="unknown_host",
        )
        await error.response()(scope, receive, send)


def host_name(header: str) -> str:
    """Return the name in a ``Host`` header, without its port and the brackets of an address."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].rstrip(".")


def _is_own(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost") or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_local(host: str) -> bool:
    """Return whether a server that listens there is reached from this machine only."""
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)
