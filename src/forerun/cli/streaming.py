"""One reply as it streams: its text to standard output at once, its numbers kept for later."""

import re
import sys
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Final

from forerun.core.errors import RequestError
from forerun.engine.outputs import DecodeMetrics, FinishReason, StreamChunk, TokenLogprob, TokenOrigin

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What came of one request.

    Attributes:
        text: The text that was written.
        token_ids: The tokens.
        origins: Where each came from.
        logprobs: One entry a token where asked for.
        finish_reason: ``cancelled`` where it was stopped.
    """

    text: str
    token_ids: tuple[int, ...]
    origins: tuple[TokenOrigin, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason


def write_stream(chunks: Iterable[StreamChunk], *, is_stopped: Callable[[], bool] = lambda: False) -> Reply:
    """Write a request's text as it comes, with a line break after it.

    Args:
        chunks: Of one request.
        is_stopped: Asked after each chunk; ``True`` cancels the rest.

    Returns:
        What was written, and the tokens.

    Raises:
        RequestError: The request could not go on as its parameters ask; what came before is written.
    """
    taken: list[StreamChunk] = []
    for chunk in chunks:
        taken.append(chunk)
        write_text(chunk.text)
        if is_stopped():
            if isinstance(chunks, Generator):
                chunks.close()
            break
    write_text("\n")
    if taken and taken[-1].error is not None:
        raise RequestError(taken[-1].error)
    return Reply(
        text="".join(chunk.text for chunk in taken),
        token_ids=tuple(token_id for chunk in taken for token_id in chunk.token_ids),
        origins=tuple(origin for chunk in taken for origin in chunk.origins),
        logprobs=tuple(logprob for chunk in taken for logprob in chunk.logprobs),
        finish_reason=(taken[-1].finish_reason if taken else None) or "cancelled",
    )


def write_text(text: str) -> None:
    """Write text without a line break, and let the reader have it at once.

    On a terminal, control characters other than tabs and line breaks are shown as U+FFFD: a model's words must not
    move the cursor. A file or pipe gets them as they are.
    """
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def visible(text: str) -> str:
    """Return the text with U+FFFD for every control character but tab and line feed."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def metrics_lines(metrics: DecodeMetrics) -> list[str]:
    """Return a call's metrics in words, a few lines."""
    lines = [
        f"{metrics.method}: {metrics.tokens_per_s:.1f} tokens/s on {metrics.cores} "
        f"core{'' if metrics.cores == 1 else 's'} ({metrics.num_tokens} tokens; prefill {metrics.prefill_s:.2f} s, "
        f"decode {metrics.decode_s:.2f} s)",
        f"{metrics.mean_acceptance_length:.2f} tokens a pass of the target, {metrics.num_engine_steps} passes; "
        f"{metrics.non_verify_share:.1%} of the time not verifying",
    ]
    if metrics.acceptance_rate:
        lines.append(
            f"draft tokens accepted {metrics.acceptance_rate:.1%}, outcomes predicted {metrics.cache_hit_rate:.1%}"
        )
    return lines


def reply_dict(reply: Reply, metrics: DecodeMetrics) -> dict[str, Any]:
    """Return a reply with its metrics as plain JSON types."""
    return {
        "text": reply.text,
        "token_ids": list(reply.token_ids),
        "origins": list(reply.origins),
        "logprobs": [
            {"token_id": entry.token_id, "logprob_nats": entry.logprob_nats, "top": [list(pair) for pair in entry.top]}
            for entry in reply.logprobs
        ],
        "finish_reason": reply.finish_reason,
        "metrics": metrics.as_dict(),
    }
