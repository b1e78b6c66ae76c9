"""What followed when the context last ended like this: a guess that costs nothing and is often right.

Small models repeat themselves, and answers quote their prompts. On the embedded model's greedy text a match of three
tokens or more exists at four places in ten, and its continuation is the next token in 85% of them, where a small draft
is right in half. So the draft's law is mixed with this guess, by how often such guesses were right.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from forerun.engine.law import ProcessedLaw

_KEY_LENGTHS: Final = (6, 3)
"""Ends of the context that are looked up, longest first; shorter ones are no better than a draft model."""
_PRIOR_RIGHT: Final = {3: 0.55, 4: 0.65, 5: 0.7, 6: 0.9}
"""Share of right guesses by length of the match (6 and more together), as measured on the embedded model."""
_PRIOR_WEIGHT: Final = 6.0


class ContextCopy:
    """Guesses from the committed tokens of one request, and keeps count of how good its guesses are.

    Args:
        token_ids: The prompt.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}
        self._made = dict.fromkeys(_PRIOR_RIGHT, _PRIOR_WEIGHT)
        self._right = {length: _PRIOR_WEIGHT * share for length, share in _PRIOR_RIGHT.items()}
        self._extend(token_ids)

    def commit(self, token_ids: Sequence[int]) -> None:
        """Add decided tokens, counting what would have been guessed for each."""
        for token in token_ids:
            found = self._find(self._tokens[-max(_KEY_LENGTHS) :])
            if found is not None:
                place, length = found
                self._made[length] += 1
                self._right[length] += self._tokens[place] == token
            self._extend([token])

    def guess(self, recent_ids: Sequence[int]) -> tuple[int, float] | None:
        """Guess the token after a context.

        Args:
            recent_ids: The last tokens of the context, accepted or hypothetical; six are looked at.

        Returns:
            The token and the chance that it is right, a fraction; ``None`` without a match of three tokens.
        """
        found = self._find(recent_ids[-max(_KEY_LENGTHS) :])
        if found is None:
            return None
        place, length = found
        return self._tokens[place], self._right[length] / self._made[length]

    def _find(self, recent_ids: Sequence[int]) -> tuple[int, int] | None:
        """Return the place of the continuation, and the length of the match (6 for 6 and more)."""
        for size in _KEY_LENGTHS:
            place = self._next.get(tuple(recent_ids[-size:])) if len(recent_ids) >= size else None
            if place is not None:
                length = size
                while (
                    length < min(max(_KEY_LENGTHS), len(recent_ids))
                    and place > length
                    and self._tokens[place - length - 1] == recent_ids[-length - 1]
                ):
                    length += 1
                return place, length
        return None

    def _extend(self, token_ids: Sequence[int]) -> None:
        for token in token_ids:
            place = len(self._tokens)
            for size in _KEY_LENGTHS:
                if place >= size:
                    self._next[tuple(self._tokens[place - size :])] = place
            self._tokens.append(token)


def mixed_law(law: ProcessedLaw, token_id: int, *, weight: float) -> ProcessedLaw:
    r"""Return the law that is ``token_id`` with probability ``weight`` and else drawn from ``law``.

    .. math:: q'(x) = (1 - w) q(x) + w [x = t]

    Args:
        law: The draft's law q.
        token_id: t; it need not be a candidate of ``law``.
        weight: w, in [0, 1).
    """
    # In the precision of the scores, as which the law is sent: the target must see the very law that was drawn from.
    probs = ((1 - weight) * law.probs()).astype(law.scores.dtype)
    index = law.index_of(token_id)
    if index is not None:
        probs[index] += weight
        return ProcessedLaw.from_probs(probs, vocab_size=law.vocab_size, ids=law.ids)
    ids = np.arange(len(probs)) if law.ids is None else law.ids
    place = int(np.searchsorted(ids, token_id))
    return ProcessedLaw.from_probs(
        np.insert(probs, place, weight), vocab_size=law.vocab_size, ids=np.insert(ids, place, token_id)
    )
