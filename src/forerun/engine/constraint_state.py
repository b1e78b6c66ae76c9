"""Which token may come next under a constraint, after a text that grows, and shrinks where a draft was rejected."""

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final, Protocol, Self

import numpy as np
from jaxtyping import Bool

from forerun.engine.history import common_length

if TYPE_CHECKING:
    from llguidance import LLMatcher


_NO_REASON: Final = re.compile(r"^at \d+\(\d+\): |^\s*\d+ \|.*|^\s*\^+\s*$|^<non-verbose/>$", re.MULTILINE)
"""Of the library's messages: places in a grammar that users never see."""


class TokenConstraint(Protocol):
    """What a constraint allows, position by position. The history it has followed is its only state."""

    def follow(self, output_ids: Sequence[int]) -> None:
        """Make the history equal ``output_ids``, going back and forth only where they differ."""
        ...

    def add(self, token_id: int) -> None:
        """Add a token, allowed or not."""
        ...

    def allowed(self) -> Bool[np.ndarray, " vocab"]:
        """Return which tokens may follow: none after a token that was not allowed. Not to be written to."""
        ...

    @property
    def problem(self) -> str:
        """Why nothing may follow, as far as it is known."""
        ...

    def fork(self) -> Self:
        """Return a constraint of its own at the start of the text."""
        ...


class GrammarState:
    """A :class:`TokenConstraint` by a compiled grammar.

    Allowed is a token whose bytes keep the text a beginning of one that the grammar derives; of a stretch of text that
    is forced, the tokens with which the model's tokenizer writes it. A token that ends the request is allowed where the
    text *is* derived, and after it only such a token. So which tokens are allowed is a
    function of the history alone, and the law of decoding under a constraint is that of a model whose other tokens have
    probability 0, by every method.

    Args:
        compiled: The grammar at the start of a text. It is not changed.
        vocab_size: Size of the target's vocabulary; the compiled one may be larger.
        ending_ids: Tokens that end the request.
    """

    def __init__(self, compiled: "LLMatcher", *, vocab_size: int, ending_ids: Collection[int]) -> None:
        self._compiled, self._vocab_size = compiled, vocab_size
        self._ending_ids = frozenset(ending_ids)
        self._ending_columns = np.array(sorted(ending_ids), np.int64)
        self._matcher = compiled.deep_copy()
        self._output_ids: list[int] = []
        self._num_consumed = 0
        self._allowed: Bool[np.ndarray, " vocab"] | None = None
        self.problem = ""

    def follow(self, output_ids: Sequence[int]) -> None:
        """As :meth:`TokenConstraint.follow`."""
        shared = common_length(self._output_ids, output_ids)
        self._go_back(shared)
        for token_id in output_ids[shared:]:
            self.add(token_id)

    def add(self, token_id: int) -> None:
        """As :meth:`TokenConstraint.add`."""
        if len(self._output_ids) == self._num_consumed and token_id not in self._ending_ids:
            self._num_consumed += self._matcher.try_consume_tokens([token_id])
        self._output_ids.append(token_id)
        self._allowed = None

    def allowed(self) -> Bool[np.ndarray, " vocab"]:
        """As :meth:`TokenConstraint.allowed`."""
        if self._allowed is None:
            self._allowed = self._compute()
        return self._allowed

    def fork(self) -> "GrammarState":
        """As :meth:`TokenConstraint.fork`."""
        return GrammarState(self._compiled, vocab_size=self._vocab_size, ending_ids=self._ending_ids)

    def _compute(self) -> Bool[np.ndarray, " vocab"]:
        if len(self._output_ids) > self._num_consumed:
            allowed = np.zeros(self._vocab_size, np.bool_)
            allowed[self._ending_columns] = self._output_ids[self._num_consumed] in self._ending_ids
            self.problem = "a token before it is not allowed"
            return allowed
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(packed, count=self._vocab_size, bitorder="little").view(np.bool_)
        if self._matcher.is_error():
            # Also where no token is left. The matcher won't leave this state, so it is made anew.
            self.problem = error_text(self._matcher)
            allowed[:] = False
            self._rebuild()
            return allowed
        allowed[self._ending_columns] |= self._matcher.is_accepting()
        self.problem = "the text is not complete and no token goes on"
        return allowed

    def _go_back(self, num_tokens: int) -> None:
        if num_tokens == len(self._output_ids):
            return
        del self._output_ids[num_tokens:]
        self._allowed = None
        num_dropped = self._num_consumed - num_tokens
        if num_dropped > 0:
            self._num_consumed = num_tokens
            if not self._matcher.rollback(num_dropped):
                self._rebuild()

    def _rebuild(self) -> None:
        self._matcher = self._compiled.deep_copy()
        self._matcher.consume_tokens(self._output_ids[: self._num_consumed])


def error_text(matcher: "LLMatcher") -> str:
    """Return why a matcher has failed, in one line."""
    reason = " ".join(_NO_REASON.sub("", matcher.get_error()).split())
    return reason.replace("NoExtensionBias", "") or "no token of the vocabulary goes on"
