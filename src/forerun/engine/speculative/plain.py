"""No speculation: autoregressive decoding."""

from collections.abc import Sequence

from forerun.engine.law import ProcessedLaw
from forerun.engine.request import Request
from forerun.engine.speculative.speculator import Speculation


class NoSpeculator:
    """Proposes nothing, so that each round is one target pass of one row per request."""

    is_alive = True

    def start(self, request: Request) -> None:
        """Nothing to prepare."""

    def speculate(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Speculation]:
        """Return empty drafts."""
        return [Speculation() for _ in requests]

    def prepare(self) -> None:
        """Nothing to prepare."""

    def laws(self, request: Request, speculation: Speculation) -> Sequence[ProcessedLaw | None]:
        """Return nothing."""
        return []

    def observe(self, request: Request, num_accepted: int) -> None:
        """Nothing to learn."""

    def finish(self, request: Request) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to release."""
