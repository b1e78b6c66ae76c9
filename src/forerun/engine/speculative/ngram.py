"""Drafting without a model: what followed the last time the context ended like this."""

from collections.abc import Sequence

from forerun.engine.request import Request

MAX_MATCH = 4
MIN_MATCH = 2


def ngram_continuation(tokens: Sequence[int], *, num_tokens: int) -> list[int]:
    """Return what followed the latest earlier occurrence of the longest matching end of the context.

    Args:
        tokens: Prompt and output.
        num_tokens: Most tokens to return.

    Returns:
        At most ``num_tokens`` tokens; empty where no end of 2 to 4 tokens occurred before.

    Reference:
        Prompt look-up decoding (Saxena 2023), with the longest match first.
    """
    length = len(tokens)
    for size in range(min(MAX_MATCH, length - 1), MIN_MATCH - 1, -1):
        end = list(tokens[length - size :])
        for start in range(length - size - 1, -1, -1):
            if tokens[start] == end[0] and list(tokens[start : start + size]) == end:
                return list(tokens[start + size : start + size + num_tokens])
    return []


def context_continuation(request: Request, *, num_tokens: int) -> list[int]:
    """Return :func:`ngram_continuation` of a request's text, up to the first token that its constraint refuses."""
    found = ngram_continuation([*request.prompt_ids, *request.output_ids], num_tokens=num_tokens)
    return request.processor.allowed_part(found, request.output_ids)
