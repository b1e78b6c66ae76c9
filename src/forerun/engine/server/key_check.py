"""Lets requests to the API in by their key."""

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from forerun.engine.server.api_error import ApiError

_REFUSED = ApiError(
    401,
    "no valid API key: send the header Authorization: Bearer KEY",
    code="invalid_api_key",
    headers={"www-authenticate": "Bearer"},
)


class KeyCheck:
    """Answers 401 to who has no key.

    It stands behind what lets other origins in, so that their pages can read the refusal.

    Args:
        app: What answers the others.
        keys: One of them must be given; none: everyone is let in.
        guarded: Beginnings of paths that need a key.
    """

    def __init__(self, app: ASGIApp, *, keys: Sequence[str], guarded: tuple[str, ...]) -> None:
        self._app, self._guarded = app, guarded
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or self._is_allowed(scope):
            await self._app(scope, receive, send)
        else:
            await _REFUSED.response()(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
        if not self._keys or not path.startswith(self._guarded):
            return True
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        given = key.strip().encode()
        # Every key is compared, and each in constant time: how long it takes tells nothing.
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        return scheme.lower() == "bearer" and any(matches)
