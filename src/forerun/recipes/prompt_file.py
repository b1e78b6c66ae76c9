"""Prompts to decode: from a file in the formats people have, or a few of our own in several kinds."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from forerun.core.errors import RequestError

_FORMATS: Final = (
    'write one prompt a line, or JSON lines with {"prompt": "..."} or {"turns": ["...", ...]} (the first turn is used)'
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What a user says to the model.

    Attributes:
        text: The words, before any chat template.
        kind: What sort of task it is, for people: ``code``, ``maths``.
    """

    text: str
    kind: str = "prompt"


DEFAULT_PROMPTS: Final = (
    Prompt(
        kind="chat",
        text="I have just moved to a new city and I know nobody here. Give me five ideas for meeting people.",
    ),
    Prompt(
        kind="code",
        text="Write a Python function that returns the n-th Fibonacci number, and explain how it works.",
    ),
    Prompt(
        kind="maths",
        text="A baker sells 24 loaves in the morning and twice as many in the afternoon. Each loaf costs 3 dollars. "
        "How much does the baker earn that day? Show each step.",
    ),
    Prompt(
        kind="summary",
        text="Summarise this text: A lighthouse keeper once had to climb the tower every few hours to wind the "
        "clockwork that turned the lamp and to trim its wick. Today the lamps are electric and turn themselves, and "
        "most lighthouses stand empty. Some have become museums or small hotels, and their visitors climb the same "
        "stairs for the view.",
    ),
    Prompt(
        kind="story",
        text="Tell me a short story about a clockmaker whose clocks run a little ahead of time.",
    ),
)
"""What the race asks without a file of prompts. None of them is in the default draft's training data."""

DEFAULT_OPENINGS: Final = (
    Prompt(kind="code", text="def read_lines(path, encoding=None):\n    "),
    Prompt(kind="class", text="class Queue:\n    "),
    Prompt(kind="test", text="import unittest\n\n"),
    Prompt(kind="prose", text="The first thing that "),
    Prompt(kind="list", text="1. "),
)
"""The same for models without a chat template, which continue a text; short, for such models may see little."""


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read a file of prompts.

    Args:
        path: UTF-8 text. Where the first line that is not empty begins with ``{``, every line is a JSON object with
            ``prompt`` or ``turns`` and perhaps ``kind`` or ``category`` (as Spec-Bench has it); else each line is a
            prompt. Empty lines count for nothing.

    Raises:
        RequestError: The file can't be read or holds no prompt, or one of its lines is no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RequestError(f"prompts {path}: cannot be read ({error.strerror}); give a readable file") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"prompts {path}: is not UTF-8 text (byte {error.start}); {_FORMATS}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise RequestError(f"prompts {path}: the file is empty; {_FORMATS}")
    if not lines[0][1].startswith("{"):
        return tuple(Prompt(text=line) for _, line in lines)
    return tuple(_parse_line(line, where=f"{path}:{number}") for number, line in lines)


def _parse_line(line: str, *, where: str) -> Prompt:
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise RequestError(
            f"prompts {where}: not valid JSON ({error.msg}, column {error.colno}); {_FORMATS}"
        ) from error
    if not isinstance(entry, dict):
        raise RequestError(f"prompts {where}: must be a JSON object; {_FORMATS}")
    turns = entry.get("turns")
    text = entry.get("prompt", turns[0] if isinstance(turns, list) and turns else None)
    if not isinstance(text, str) or not text.strip():
        raise RequestError(f'prompts {where}: has no text under "prompt" or "turns"; {_FORMATS}')
    return Prompt(text=text, kind=str(entry.get("kind", entry.get("category", "prompt"))))
