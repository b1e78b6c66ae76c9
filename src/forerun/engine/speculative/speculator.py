"""What the engine core asks of a way to speculate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from forerun.engine.law import ProcessedLaw
from forerun.engine.outputs import OutcomeLookUp, TokenOrigin
from forerun.engine.request import Request

LawPlace = Literal["speculator", "target", "nowhere"]
"""Where the laws are that draft tokens were drawn from: to be had of the speculator; beside the target, which verifies
by them itself; or nowhere, as tokens were chosen without chance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speculation:
    """Draft tokens for one request's next verification.

    Attributes:
        token_ids: The draft, maybe empty.
        origin: What its accepted tokens are counted as.
        is_hit: Whether the outcome before it was predicted; ``None`` where nothing predicts outcomes.
        num_prepared: Tokens drafted ahead for that outcome and others that might have come.
        look_up: What was prepared for that outcome, where the request asks.
        laws_at: Where the laws of its tokens are, under rejection verification.
    """

    token_ids: tuple[int, ...] = ()
    origin: TokenOrigin = "draft"
    is_hit: bool | None = None
    num_prepared: int = 0
    look_up: OutcomeLookUp | None = None
    laws_at: LawPlace = "speculator"


class Speculator(Protocol):
    """Makes drafts: the core calls start, in each round speculate, prepare, laws and observe, and finish at the end."""

    @property
    def is_alive(self) -> bool:
        """Whether it can draft now."""
        ...

    def start(self, request: Request) -> None:
        """Learn of a request before its prefill; one that is taken over has decided tokens already."""
        ...

    def speculate(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Speculation]:
        """Return a draft of at most ``limits[i]`` tokens for each request; all have an output token to follow."""
        ...

    def prepare(self) -> None:
        """Make ready for what may come of the last drafts; called when their verification has been launched.

        It runs meanwhile, where target and host can work side by side; not called where it could not begin.
        """
        ...

    def laws(self, request: Request, speculation: Speculation) -> Sequence[ProcessedLaw | None]:
        """Return the law of each draft token; called after the target's pass, under rejection verification only.

        ``None`` for a token chosen without chance (one-hot law). It is exact for any token, only accepted less often.
        """
        ...

    def observe(self, request: Request, num_accepted: int) -> None:
        """Learn the outcome of a verification; the request holds the new tokens."""
        ...

    def finish(self, request: Request) -> None:
        """Forget a request."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...
