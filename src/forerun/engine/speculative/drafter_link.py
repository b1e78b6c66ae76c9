"""What the target asks of its end of a drafter."""

from typing import Protocol

from forerun.engine.speculative.messages import Message
from forerun.engine.speculative.speculation_cache import SpeculationCache
from forerun.engine.speculative.target_states import StateBuffer


class DrafterLink(Protocol):
    """A drafter that takes messages and fills a speculation cache, at its own pace.

    Attributes:
        cache: Where its answers appear.
        states: Where it reads the target's keys and values; untouched if its draft has no use for them.
        vocab_size: Of the target, for the laws it publishes.
    """

    cache: SpeculationCache
    states: StateBuffer
    vocab_size: int

    def send(self, message: Message) -> None:
        """Give a message to the drafter, without waiting for it to act.

        Raises:
            DrafterError: It is gone, or has stopped reading.
        """
        ...

    def check_alive(self, timeout_s: float) -> None:
        """Notice a dead or hung drafter; called while there is something that it should be doing.

        Raises:
            DrafterError: It has ended, or has made no progress for ``timeout_s``.
        """
        ...

    def close(self) -> None:
        """End the drafter. May be called again."""
        ...
