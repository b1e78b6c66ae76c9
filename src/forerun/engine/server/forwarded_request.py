"""Requests that a front has let in, and how a replica's answer to one ends."""

from dataclasses import dataclass
from typing import Any

END_OF_ANSWER = "forerun.end"
"""Type of the message that tells the front what belongs to the log line; it is not the client's."""


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
