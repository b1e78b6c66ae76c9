"""Errors as OpenAI's API writes them."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from forerun.core.errors import EngineOverloadedError, EngineStoppedError

RETRY_AFTER_S = "1"
"""When to come back, for who is turned away by a crowd or an end."""


class ApiError(Exception):
    """A request that gets an error for an answer.

    Args:
        status: HTTP status.
        message: What was wrong, what is allowed, what to do.
        param: The parameter at fault, if it is one.
        code: A word for programs.
        headers: Of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def content(self) -> dict[str, Any]:
        """Return the JSON object."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the HTTP answer."""
        return JSONResponse(self.content(), status_code=self.status, headers=self.headers)


def overloaded(error: EngineOverloadedError) -> ApiError:
    """Return the answer where too many wait."""
    return ApiError(429, str(error), code="overloaded", headers={"retry-after": RETRY_AFTER_S})


def unavailable(error: EngineStoppedError) -> ApiError:
    """Return the answer where no engine takes requests."""
    return ApiError(503, str(error), code="unavailable", headers={"retry-after": RETRY_AFTER_S})
