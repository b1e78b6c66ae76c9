"""Sample a target on many prompts at once, keeping what it thought of every token."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal

import numpy as np
import torch

from forerun.core.rows import Rows
from forerun.models.int8_runner import Int8Runner

NUM_TOP = 48
"""Alternatives drawn from and kept per token: nearly all the probability, little enough to store."""
Kept = Literal["keys and values", "hidden states"]
"""What is kept of the target's layers: keys and values, or what enters them."""
_LARGEST: Final = float(np.finfo(np.float16).max)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """One text to sample.

    Attributes:
        prompt: Token ids.
        temperature: 0 for greedy.
        max_tokens: Tokens to sample at most.
    """

    prompt: Sequence[int]
    temperature: float
    max_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledText:
    """A sampled text and the target's laws (temperature 1) along it.

    Attributes:
        prompt: Token ids.
        tokens: Sampled ids, an end id included where one came.
        top_ids: int32 ``[len(tokens), NUM_TOP]``, the likeliest ids at each sampled position, best first.
        top_logprobs: float16, as ``top_ids``, natural logarithms.
        states: float16, along the text but for its last token, of the layers of the target that were asked for: keys
            and values ``[len(prompt) + len(tokens) - 1, layers, 2, G, D]``, or hidden states ``[.., layers, hidden]``.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    top_ids: np.ndarray
    top_logprobs: np.ndarray
    states: np.ndarray


@dataclass(slots=True)
class _Row:
    index: int
    request: SampleRequest
    length: int
    tokens: list[int] = field(default_factory=list)
    top_ids: list[np.ndarray] = field(default_factory=list)
    top_logprobs: list[np.ndarray] = field(default_factory=list)


@torch.inference_mode()
def sample_texts(
    runner: Int8Runner,
    requests: Sequence[SampleRequest],
    *,
    eos_ids: frozenset[int],
    layer_ids: Sequence[int],
    generator: torch.Generator,
    keeps: Kept = "keys and values",
) -> list[SampledText]:
    """Sample all requests, as many at a time as the runner has sequences; a finished one makes room for the next.

    Args:
        runner: The target; its cache is overwritten.
        requests: Prompt and ``max_tokens`` must fit the runner's capacity.
        eos_ids: End a text.
        layer_ids: Layers of which something is kept.
        generator: Source of the draws.
        keeps: What is.

    Returns:
        One text per request, in order.
    """
    if keeps == "hidden states":
        runner.keep_features(layer_ids)
        read = runner.read_features
    else:
        read = partial(runner.read_states, layer_ids=layer_ids)
    done: list[SampledText | None] = [None] * len(requests)
    waiting = list(enumerate(requests))[::-1]
    active: dict[int, _Row] = {}
    while waiting or active:
        for sequence in range(runner.num_sequences):
            if sequence not in active and waiting:
                index, request = waiting.pop()
                active[sequence] = _Row(index, request, len(request.prompt))
                logits = runner.forward(
                    Rows.chains([(sequence, 0, list(request.prompt))]), logit_rows=np.array([len(request.prompt) - 1])
                )
                _append([active[sequence]], logits, generator)
        for sequence, row in list(active.items()):
            if row.tokens[-1] in eos_ids or len(row.tokens) >= row.request.max_tokens:
                done[row.index] = SampledText(
                    prompt=tuple(row.request.prompt),
                    tokens=tuple(row.tokens),
                    top_ids=np.stack(row.top_ids),
                    top_logprobs=np.stack(row.top_logprobs),
                    states=read(sequence, 0, row.length).clip(-_LARGEST, _LARGEST).astype(np.float16),
                )
                del active[sequence]
        if active and not (waiting and len(active) < runner.num_sequences):
            rows = [active[sequence] for sequence in sorted(active)]
            logits = runner.forward(
                Rows.chains(
                    [(sequence, active[sequence].length, [active[sequence].tokens[-1]]) for sequence in sorted(active)]
                )
            )
            for row in rows:
                row.length += 1
            _append(rows, logits, generator)
    return [text for text in done if text is not None]


def _append(rows: list[_Row], logits: np.ndarray, generator: torch.Generator) -> None:
    """Draw one token per row from the head of its law, and record the head."""
    logprobs = torch.from_numpy(logits).log_softmax(-1)
    top_logprobs, top_ids = logprobs.topk(NUM_TOP, dim=-1)
    temperatures = torch.tensor([row.request.temperature for row in rows])
    laws = (top_logprobs / temperatures.clamp(min=1e-3)[:, None]).softmax(-1)
    draws = top_ids.gather(1, torch.multinomial(laws, 1, generator=generator))[:, 0]
    tokens = torch.where(temperatures == 0, top_ids[:, 0], draws).tolist()
    for index, row in enumerate(rows):
        row.tokens.append(tokens[index])
        row.top_ids.append(top_ids[index].to(torch.int32).numpy())
        row.top_logprobs.append(top_logprobs[index].half().numpy())
