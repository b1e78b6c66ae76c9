"""How much a round has to do, whatever is drafted for it."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol


class _Decoding(Protocol):
    @property
    def num_computed_tokens(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """How many requests decode side by side, and over how much text.

    Attributes:
        num_requests: At least one.
        num_context: Tokens of the target's cache that they see, all together; what several share counts for each.
    """

    num_requests: int
    num_context: int

    @classmethod
    def of(cls, requests: Collection[_Decoding]) -> "Load":
        """Return the load that these requests are."""
        return cls(num_requests=len(requests), num_context=sum(request.num_computed_tokens for request in requests))

    @property
    def mean_context(self) -> float:
        """Tokens that a request sees."""
        return self.num_context / self.num_requests

    @property
    def kind(self) -> tuple[int, int]:
        """Two numbers for loads that are much alike: 1, 2, 3 to 4, 5 to 8 requests, and texts by factors of four."""
        return (self.num_requests - 1).bit_length(), (round(self.mean_context).bit_length() + 1) // 2

    def at_most(self, num_requests: int) -> "Load":
        """Return this load if not more requests than so many can run side by side."""
        number = min(num_requests, self.num_requests)
        return Load(num_requests=number, num_context=round(number * self.mean_context))
