"""What every request passes: its id, the count and the log line of its answer."""

import logging
import re
import time
import uuid
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forerun.engine.server.json_log import log_event
from forerun.engine.server.metrics import ServerMetrics

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LONGEST_PATH = 200
_WATCHED = frozenset({"/health", "/ready", "/metrics"})
"""What monitors ask for every second is no news."""
_DEFAULT_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Gate:
    """Outermost application: gives a request its id, and knows the answer by its status.

    Routes may leave fields for the log line in ``scope["state"]["log"]``.

    Args:
        app: What answers.
        metrics: Counts answers.
        routes: Paths by which answers are counted; others count as ``other``.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, *, routes: Collection[str]) -> None:
        self._app, self._metrics, self._routes = app, metrics, frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 499
        headers, path = Headers(scope=scope), str(scope["path"]).removeprefix(scope.get("root_path", ""))
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        fields: dict[str, Any] = {}
        scope.setdefault("state", {})["log"] = fields

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                for name, value in _DEFAULT_HEADERS.items():
                    out.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            duration_s = time.perf_counter() - started
            route = path if path in self._routes else "other"
            self._metrics.observe_response(path=route, status=status, duration_s=duration_s)
            client = scope.get("client")
            log_event(
                "request",
                level=logging.DEBUG if path in _WATCHED else logging.INFO,
                request_id=request_id,
                method=scope["method"],
                path=path[:_LONGEST_PATH],
                status=status,
                duration_s=round(duration_s, 6),
                client=client[0] if client else None,
                **fields,
            )
