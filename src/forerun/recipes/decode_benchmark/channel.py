"""The engine's end of the pipe: JSON lines, one request in, one reply out. Standard library only.

A worker opens the channel before it imports its engine, says hello once it can decode, then serves until its standard
input is closed::

    channel = Channel(cores=(0,))
    ...load the engine...
    channel.hello(versions={"torch": "2.13.0"})
    channel.serve(decode)
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt to continue.

    Attributes:
        prompt_token_ids: The whole prompt, chat template included.
        max_tokens: Most tokens to emit.
        temperature: 0 is greedy; otherwise the full softmax at this temperature, with no top-k, top-p or penalty.
        seed: Root of the random streams.
        eos_ids: Tokens that end the output; one that is emitted counts as a token.
    """

    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int
    eos_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What an engine emitted, and its own clock readings.

    Attributes:
        token_ids: Tokens emitted, end-of-sequence token included.
        first_token_s: From the request to the first token (prefill).
        decode_s: From the first token to the last.
        metrics: An engine of ours adds the fields of :class:`forerun.engine.outputs.DecodeMetrics`; a peer, nothing.
    """

    token_ids: tuple[int, ...]
    first_token_s: float
    decode_s: float
    metrics: Mapping[str, Any] | None = None


class Channel:
    """Talks to the benchmark over this process's standard streams.

    Args:
        cores: The cores this process, and every thread and process it starts, may use.

    Effects:
        Restricts the process to ``cores`` where the system can. Whatever a library prints to standard output goes to
        standard error from here on, so that it can't be taken for a reply.
    """

    def __init__(self, *, cores: tuple[int, ...]) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        sys.stdout.flush()
        self._replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def hello(self, **facts: Any) -> None:
        """Say that requests can come.

        Args:
            **facts: What the result file should know of this engine; JSON types.
        """
        self._send({"ready": True, **facts})

    def serve(self, decode: Callable[[Request], Reply]) -> None:
        """Answer requests until standard input is closed."""
        for line in sys.stdin:
            fields = json.loads(line)
            fields |= {name: tuple(fields[name]) for name in ("prompt_token_ids", "eos_ids")}
            self._send(asdict(decode(Request(**fields))))

    def _send(self, message: Mapping[str, Any]) -> None:
        self._replies.write(json.dumps(message) + "\n")
        self._replies.flush()


def parse_cores(text: str) -> tuple[int, ...]:
    """Read the command-line form of a set of cores, such as ``0,1``."""
    return tuple(int(part) for part in text.split(","))
