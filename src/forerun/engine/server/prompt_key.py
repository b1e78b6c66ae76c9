"""What requests have in common that should meet the same cache: the beginning of their prompts."""

import hashlib
import json
from typing import Any, cast

_BEGINNING = 512
"""Characters of a prompt, or bytes of its token ids, that make the key."""


def prompt_key(body: bytes) -> str:
    """Return a word that conversations keep from turn to turn, and prompts with the same beginning share.

    It covers a chat up to its first message by the user: later turns follow the first one to the replica that has its
    keys and values, while conversations that share a system prompt only are spread.

    Args:
        body: Of a request, maybe no JSON at all.

    Returns:
        Hexadecimal digits; empty where there is no prompt.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(content, dict):
        return ""
    fields = cast("dict[str, Any]", content)
    beginning: Any = fields.get("prompt")
    messages: Any = fields.get("messages")
    if isinstance(messages, list):
        beginning = []
        for message in cast("list[Any]", messages):
            beginning.append(message)
            if isinstance(message, dict) and cast("dict[str, Any]", message).get("role") == "user":
                break
    elif beginning:
        beginning = json.dumps(beginning)[:_BEGINNING]
    if not beginning:
        return ""
    return hashlib.blake2b(json.dumps(beginning, sort_keys=True).encode(), digest_size=8).hexdigest()
