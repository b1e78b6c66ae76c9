"""Finds the calls of tools in a text as it comes, so that they can be streamed."""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from forerun.engine.server.tool_prompt import BLOCK_BEGIN, BLOCK_END

_HEAD: Final = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_BRACE: Final = re.compile(r"^\s*\}?\s*")
_MOST_HEAD_CHARACTERS: Final = 512


@dataclass(frozen=True, slots=True)
class Content:
    """Text that belongs to no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call begins."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the JSON of the last call's arguments."""

    text: str


Piece = Content | CallBegin | CallArguments


class ToolCallParser:
    """Cuts a text into content and calls; the pieces together don't depend on how the text comes.

    A block counts as a call once its beginning names a function on offer and its arguments begin. What does not is
    content, tags and all. White space around calls is left out.

    Args:
        names: Of the functions on offer.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._held = ""
        self._follows_call = False
        self._state = self._text
        self._depth, self._is_string, self._is_escaped = 0, False, False

    def push(self, text: str, *, is_last: bool = False) -> list[Piece]:
        """Take a piece of text.

        Args:
            text: The piece.
            is_last: Whether nothing follows, so that nothing is held back.

        Returns:
            What is known now.
        """
        self._held += text
        pieces: list[Piece] = []
        before = None
        while before != (len(self._held), self._state):
            before = (len(self._held), self._state)
            pieces += self._state(is_last)
        return pieces

    def _text(self, is_last: bool) -> Iterator[Piece]:
        """Content, up to the beginning of a block."""
        found = self._held.find(BLOCK_BEGIN)
        if found >= 0:
            head = _HEAD.match(self._held, found + len(BLOCK_BEGIN))
            rest = self._held[found + len(BLOCK_BEGIN) :]
            name = "" if head is None else _string(head[1])
            if head is not None and name in self._names:
                yield from self._content(self._held[:found].rstrip())
                yield CallBegin(name)
                self._held = self._held[head.end() :]
                self._depth, self._is_string, self._is_escaped = 0, False, False
                self._follows_call, self._state = True, self._arguments
                return
            if head is None and not is_last and BLOCK_END not in rest and len(rest) < _MOST_HEAD_CHARACTERS:
                yield from self._content(self._cut(len(self._held[:found].rstrip())))
                return
            yield from self._content(self._cut(found + len(BLOCK_BEGIN)))
            return
        open_from = len(self._held) if is_last else _open_from(self._held)
        yield from self._content(self._cut(open_from))

    def _arguments(self, is_last: bool) -> Iterator[Piece]:
        """The arguments, up to the brace that ends them."""
        for place, character in enumerate(self._held):
            if self._is_string:
                self._is_string = self._is_escaped or character != '"'
                self._is_escaped = not self._is_escaped and character == "\\"
            elif character == '"':
                self._is_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    yield CallArguments(self._cut(place + 1))
                    self._state = self._tail
                    return
        if self._held:
            yield CallArguments(self._cut(len(self._held)))

    def _tail(self, is_last: bool) -> Iterator[Piece]:
        """What closes a block: its tag, or where that is missing the next block or the end."""
        end, begin = self._held.find(BLOCK_END), self._held.find(BLOCK_BEGIN)
        if begin >= 0 and (end < 0 or begin < end):
            self._cut(begin)
            self._state = self._text
        elif end >= 0:
            self._cut(end + len(BLOCK_END))
            self._state = self._text
        elif is_last:
            rest = _BRACE.sub("", self._cut(len(self._held)), count=1)
            self._state = self._text
            if not BLOCK_END.startswith(rest):
                yield from self._content(rest)

    def _content(self, text: str) -> Iterator[Piece]:
        if self._follows_call:
            text = text.lstrip()
        if text:
            self._follows_call = False
            yield Content(text)

    def _cut(self, end: int) -> str:
        cut, self._held = self._held[:end], self._held[end:]
        return cut


def _open_from(text: str) -> int:
    """Return where a text may turn out to be white space before a block, or the beginning of its tag."""
    longest = min(len(text), len(BLOCK_BEGIN) - 1)
    size = next((size for size in range(longest, 0, -1) if text.endswith(BLOCK_BEGIN[:size])), 0)
    return len(text[: len(text) - size].rstrip())


def _string(text: str) -> str:
    """Return what a JSON string says; nothing where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return ""
