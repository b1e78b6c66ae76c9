"""When a request ends, and the text and tokens that belong to it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from forerun.engine.detokenizer import IncrementalDetokenizer, StopStringFilter
from forerun.engine.outputs import FinishReason
from forerun.engine.sampling import SamplingParams


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputStep:
    """What some decided tokens add to a request's output.

    Attributes:
        num_kept: How many of the tokens belong to the output; those after an end do not.
        text: Text to show now.
        finish_reason: Set if the request ends here.
    """

    num_kept: int
    text: str
    finish_reason: FinishReason | None


class OutputTracker:
    """Follows one request's output token by token: its text, and the token that ends it.

    Tokens are looked at one by one, so the outcome does not depend on how many a round decides at once. A request ends
    at the first token that is an end-of-sequence or stop id (kept, without text), or that completes a stop string
    (kept; the text is cut before the string), or that is the last allowed by ``max_tokens``. Where several hold, it is
    a stop and not a length. No stop condition applies before ``min_tokens`` tokens are out: an ending token must follow
    them, a stop string may be completed by the last of them.

    Args:
        params: Sampling parameters.
        eos_ids: Every end-of-sequence id of the model.
        token_bytes: The bytes of a token id; empty for a token without text.
        max_tokens: Most output tokens: ``params.max_tokens`` or what the context has room for, if that is less.
    """

    def __init__(
        self,
        params: SamplingParams,
        eos_ids: Collection[int],
        token_bytes: Callable[[int], bytes],
        *,
        max_tokens: int,
    ) -> None:
        self._ending_ids = params.ending_ids(eos_ids)
        self._min_tokens = params.min_tokens
        self._max_tokens = max_tokens
        self._detokenizer = IncrementalDetokenizer(token_bytes)
        self._filter = StopStringFilter(params.stop)
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None

    def push(self, token_ids: Sequence[int]) -> OutputStep:
        """Add decided tokens, in order. After the end, nothing is kept.

        Args:
            token_ids: The tokens of one round.

        Returns:
            How many of them count, the text they release, and whether the request ends.
        """
        texts: list[str] = []
        num_kept = 0
        for token_id in token_ids:
            if self.finish_reason is not None:
                break
            num_kept += 1
            texts.append(self._push_one(token_id))
        return OutputStep(num_kept=num_kept, text="".join(texts), finish_reason=self.finish_reason)

    def end(self, reason: FinishReason) -> OutputStep:
        """End the request where it is, for this reason unless it has ended already, and release the text held back."""
        if self.finish_reason is not None:
            return OutputStep(num_kept=0, text="", finish_reason=self.finish_reason)
        self.finish_reason = reason
        return OutputStep(num_kept=0, text=self._tail(), finish_reason=self.finish_reason)

    def _push_one(self, token_id: int) -> str:
        self.num_tokens += 1
        if token_id in self._ending_ids and self.num_tokens > self._min_tokens:
            self.finish_reason = "stop"
            return self._tail()
        text = self._filter.push(self._detokenizer.push(token_id), may_match=self.num_tokens >= self._min_tokens)
        if self._filter.is_matched:
            self.finish_reason = "stop"
        elif self.num_tokens >= self._max_tokens:
            self.finish_reason = "length"
            text += self._tail()
        return text

    def _tail(self) -> str:
        return self._filter.push(self._detokenizer.finish()) + self._filter.finish()
