"""Text from tokens as they come: complete characters only, and nothing that may turn out to be a stop string."""

import codecs
from collections.abc import Callable, Sequence


class IncrementalDetokenizer:
    """UTF-8 text from a stream of tokens, the same whatever the pieces it arrives in.

    A character's bytes may be spread over tokens: they are held back until it is complete. Bytes that can't be UTF-8
    become U+FFFD, as they would in one piece; a character still open becomes U+FFFD when the text ends.

    Args:
        token_bytes: The bytes of a token id; empty for a token without text, such as end-of-sequence.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Return the characters that this token completes; may be empty."""
        return self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        """Return U+FFFD for a character left open, else nothing."""
        return self._decoder.decode(b"", final=True)


class StopStringFilter:
    """Lets text through up to the first stop string, and holds back what may be the start of one.

    The match that counts is the one that ends first, and of those the longest. It does not depend on how the text is
    cut into pieces (where every piece may match).

    Args:
        stop: Stop strings, none empty; there may be none.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self._num_searched = 0
        self.is_matched = False

    def push(self, text: str, *, may_match: bool = True) -> str:
        """Add a piece of text.

        Args:
            text: The piece.
            may_match: Whether a stop string that this piece completes ends the text.

        Returns:
            Text to show now. Once a stop string has matched, what came before it; after that, nothing.
        """
        if self.is_matched:
            return ""
        self._held += text
        if may_match and (start := self._match_start()) is not None:
            self.is_matched = True
            return self._held[:start]
        num_open = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        shown, self._held = self._held[: len(self._held) - num_open], self._held[len(self._held) - num_open :]
        self._num_searched = num_open
        return shown

    def finish(self) -> str:
        """Return the text held back, as the stop string it might have been did not come."""
        if self.is_matched:
            return ""
        held, self._held = self._held, ""
        return held

    def _match_start(self) -> int | None:
        matches: list[tuple[int, int]] = []
        for stop in self._stop:
            start = self._held.find(stop, max(0, self._num_searched - len(stop) + 1))
            if start >= 0:
                matches.append((start + len(stop), start))
        return min(matches)[1] if matches else None


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that begins ``stop`` without completing it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
