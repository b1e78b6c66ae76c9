"""A message of the assistant as it comes: its text, and the calls of tools in it."""

import uuid
from collections.abc import Collection
from typing import Any

from forerun.engine.server.tool_parser import CallBegin, Content, Piece, ToolCallParser


class AssistantMessage:
    """Builds a message from its text, whole and as OpenAI's deltas.

    Args:
        tool_names: Functions that the model may call; none: all text is content.
    """

    def __init__(self, tool_names: Collection[str]) -> None:
        self._parser = ToolCallParser(tool_names) if tool_names else None
        self._content = ""
        self._calls: list[dict[str, Any]] = []

    @property
    def has_calls(self) -> bool:
        """Whether a tool is called."""
        return bool(self._calls)

    def add(self, text: str, *, is_last: bool) -> dict[str, Any]:
        """Take a piece of text.

        Args:
            text: The piece; may be empty.
            is_last: Whether nothing follows.

        Returns:
            The delta that it makes; empty where text is held back.
        """
        pieces: list[Piece] = [Content(text)] if text else []
        if self._parser is not None:
            pieces = self._parser.push(text, is_last=is_last)
        delta: dict[str, Any] = {}
        calls: dict[int, dict[str, Any]] = {}
        for piece in pieces:
            if isinstance(piece, Content):
                self._content += piece.text
                delta["content"] = delta.get("content", "") + piece.text
                continue
            if isinstance(piece, CallBegin):
                call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
                self._calls.append(call | {"function": {"name": piece.name, "arguments": ""}})
                new = {"index": len(self._calls) - 1, **call, "function": {"name": piece.name, "arguments": ""}}
                calls[len(self._calls) - 1] = new
                continue
            index = len(self._calls) - 1
            self._calls[index]["function"]["arguments"] += piece.text
            calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
            calls[index]["function"]["arguments"] += piece.text
        return delta | ({"tool_calls": list(calls.values())} if calls else {})

    def whole(self) -> dict[str, Any]:
        """Return the message."""
        message: dict[str, Any] = {"role": "assistant", "content": self._content, "refusal": None}
        if self._calls:
            message |= {"content": self._content or None, "tool_calls": self._calls}
        return message
