"""What target and drafter say to each other: a few integers as JSON. Logits and, when greedy, laws are never sent."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from forerun.engine.constraint import Constraint
from forerun.engine.sampling import SamplingParams


@dataclass(frozen=True, kw_only=True, slots=True)
class StartMessage:
    """A request begins.

    Attributes:
        request: Its place in the speculation cache, and its sequence in the draft model's cache.
        number: Keys its noise.
        params: Sampling parameters, seed set.
        prompt_ids: The prompt.
        output_ids: What is decided of the output, without the last token, where the request is taken over.
        round_number: Of the round that begins (the prefill), unique over the drafter's life.
        branch_budget: Outcomes to prepare while the target prefills.
        max_depth: Tokens to prepare for each.
    """

    request: int
    number: int
    params: SamplingParams
    prompt_ids: list[int]
    output_ids: list[int]
    round_number: int
    branch_budget: int
    max_depth: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OutcomeMessage:
    """A verification has ended, and what the next round verifies.

    Attributes:
        request: Which.
        round_number: The round that begins.
        num_accepted: Accepted tokens of the last speculation.
        token: Bonus or recovered token.
        branch: The branch whose continuation is verified next; -1 on a miss.
        num_used: How many of its tokens are.
        num_draft: On a miss, tokens to draft while the target waits.
        proposed: On a miss, tokens that the target proposed itself.
        branch_budget: Outcomes to prepare for the round that begins.
        max_depth: Tokens to prepare for each.
    """

    request: int
    round_number: int
    num_accepted: int
    token: int
    branch: int
    num_used: int
    num_draft: int
    proposed: list[int]
    branch_budget: int
    max_depth: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishMessage:
    """A request has ended."""

    request: int


Message = StartMessage | OutcomeMessage | FinishMessage
_KINDS: dict[str, type[StartMessage] | type[OutcomeMessage] | type[FinishMessage]] = {
    "start": StartMessage,
    "outcome": OutcomeMessage,
    "finish": FinishMessage,
}


def encode(message: Message) -> bytes:
    """Return a message as bytes."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(message, cls))
    content = {field.name: getattr(message, field.name) for field in fields(message)}
    if isinstance(message, StartMessage):
        content["params"] = asdict(message.params) | {"logit_bias": list(message.params.logit_bias.items())}
    return json.dumps([kind, content]).encode()


def decode(data: bytes) -> Message:
    """Return the message in bytes that :func:`encode` made."""
    kind, content = json.loads(data)
    if kind == "start":
        params: dict[str, Any] = content["params"]
        bias = {int(token): float(value) for token, value in params["logit_bias"]}
        stops = {name: tuple(params[name]) for name in ("stop", "stop_token_ids")}
        constraint = params["constraint"] and Constraint(**params["constraint"])
        params.update(stops, logit_bias=bias, constraint=constraint)
        content["params"] = SamplingParams(**params)
    return _KINDS[kind](**content)
