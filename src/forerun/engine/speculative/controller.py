"""Chooses how far to speculate."""

from typing import Protocol


class Controller(Protocol):
    """Sets the length of drafts, and learns from every round."""

    def num_speculative_tokens(self, num_requests: int) -> int:
        """Return the most draft tokens per request for a round of this many requests; 0 decodes without a draft."""
        ...

    def observe(self, *, num_rows: int, num_emitted: int, round_s: float, forward_s: float) -> None:
        """Learn a round's size, yield, time, and the target's part of the time."""
        ...


class FixedController:
    """Always the same length.

    Args:
        num_speculative_tokens: K.
    """

    def __init__(self, num_speculative_tokens: int) -> None:
        self._num_speculative_tokens = num_speculative_tokens

    def num_speculative_tokens(self, num_requests: int) -> int:  # noqa: ARG002
        """Return K."""
        return self._num_speculative_tokens

    def observe(self, *, num_rows: int, num_emitted: int, round_s: float, forward_s: float) -> None:
        """Nothing to learn."""
