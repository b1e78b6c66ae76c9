"""The engine's chunks as OpenAI's API writes them, whole or as a stream."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from forerun.engine.detokenizer import IncrementalDetokenizer
from forerun.engine.outputs import StreamChunk, TokenLogprob
from forerun.engine.server.bridge import Call
from forerun.engine.server.chat_message import AssistantMessage
from forerun.engine.server.choice_plan import ChoicePlan
from forerun.engine.server.engine_thread import Delivery, Resources
from forerun.engine.server.outcome_json import outcome_json

Kind = Literal["chat", "text"]
_REASONS = {"stop": "stop", "length": "length", "cancelled": "stop", "error": "stop"}


@dataclass(slots=True)
class _ChoiceText:
    """What a choice has so far."""

    detokenizer: IncrementalDetokenizer
    measure: IncrementalDetokenizer
    message: AssistantMessage
    text: str = ""
    num_tokens: int = 0
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    tokens: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    outcomes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    offsets: list[int] = field(default_factory=list[int])
    num_characters: int = 0
    has_begun: bool = False


class Answer:
    """Builds the answer to one call.

    Args:
        kind: ``chat`` or ``text``.
        call: The call.
        resources: For the text of tokens.
        model: Name of the model.
        fingerprint: Of the engine.
        reports_logprobs: Whether log-probabilities were asked for.
        returns_tokens: Whether ids, texts and origins of tokens were.
        returns_outcomes: Whether prepared outcomes were.
        reports_usage: Whether a stream ends with the usage; the chunks before say that theirs is none.
        plan: Which completions are returned.
        tool_names: Functions that the model may call.
    """

    def __init__(
        self,
        kind: Kind,
        call: Call,
        resources: Resources,
        *,
        model: str,
        fingerprint: str,
        reports_logprobs: bool,
        returns_tokens: bool,
        returns_outcomes: bool = False,
        reports_usage: bool = False,
        plan: ChoicePlan,
        tool_names: Sequence[str] = (),
    ) -> None:
        self._kind, self._call, self._resources, self._model = kind, call, resources, model
        self._reports_logprobs, self._returns_tokens = reports_logprobs, returns_tokens
        self._returns_outcomes, self._reports_usage, self._plan = returns_outcomes, reports_usage, plan
        self._fingerprint = fingerprint
        self.id = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        token_bytes = resources.tokenizer.token_bytes
        self._choices = [
            _ChoiceText(
                detokenizer=IncrementalDetokenizer(token_bytes),
                measure=IncrementalDetokenizer(token_bytes),
                message=AssistantMessage(tool_names),
            )
            for _ in call.requests
        ]

    @property
    def num_completion_tokens(self) -> int:
        """Tokens so far, over all choices."""
        return sum(choice.num_tokens for choice in self._choices)

    @property
    def texts(self) -> list[str]:
        """Text of each choice so far."""
        return [choice.text for choice in self._choices]

    def usage(self) -> dict[str, Any]:
        """Return the numbers of tokens; a prompt counts once, however many completions it gets."""
        num_prompt = sum(len(request.prompt_ids) for request in self._call.requests if request.number == 0)
        num_completion = self.num_completion_tokens
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_completion,
            "total_tokens": num_prompt + num_completion,
        }

    def add(self, place: int, delivery: Delivery) -> dict[str, Any] | None:
        """Take a chunk.

        Returns:
            The object to stream; ``None`` where the chunk shows nothing, as text is held back.
        """
        choice, chunk = self._choices[place], delivery.chunk
        choice.text += chunk.text
        choice.num_tokens += len(chunk.token_ids)
        first = len(choice.logprobs)
        self._take_logprobs(choice, chunk.logprobs)
        tokens = self._tokens(choice, chunk, delivery.time_s) if self._returns_tokens else []
        choice.tokens += tokens
        outcomes = [] if chunk.look_up is None else [outcome_json(chunk.look_up, self._text)]
        choice.outcomes += outcomes
        if chunk.finish_reason is not None:
            choice.finish_reason = _REASONS[chunk.finish_reason]
        delta = choice.message.add(chunk.text, is_last=chunk.finish_reason is not None)
        if choice.message.has_calls and choice.finish_reason == "stop":
            choice.finish_reason = "tool_calls"
        if not (delta or chunk.logprobs or tokens or outcomes or chunk.finish_reason):
            return None
        content: dict[str, Any] = {"index": place, "finish_reason": choice.finish_reason}
        content["logprobs"] = self._logprobs(choice, first)
        if self._kind == "chat":
            empty = {"content": None if choice.message.has_calls else ""}
            content["delta"] = empty | delta if choice.has_begun else {"role": "assistant", **empty} | delta
        else:
            content["text"] = chunk.text if choice.has_begun else self._echo(place) + chunk.text
        choice.has_begun = True
        if self._returns_tokens:
            content["tokens"] = tokens
        if self._returns_outcomes:
            content["outcomes"] = outcomes
        return self._object([content], is_chunk=True) | ({"usage": None} if self._reports_usage else {})

    def last_chunk(self) -> dict[str, Any]:
        """Return the chunk with the usage."""
        return self._object([], is_chunk=True) | {"usage": self.usage()}

    def whole(self) -> dict[str, Any]:
        """Return the answer as one object."""
        choices: list[dict[str, Any]] = []
        for index, place in enumerate(self._plan.returned([choice.logprobs for choice in self._choices])):
            choice = self._choices[place]
            content: dict[str, Any] = {"index": index, "finish_reason": choice.finish_reason}
            content["logprobs"] = self._logprobs(choice, 0)
            if self._kind == "chat":
                content["message"] = choice.message.whole()
            else:
                content["text"] = self._echo(place) + choice.text
            if self._returns_tokens:
                content["tokens"] = choice.tokens
            if self._returns_outcomes:
                content["outcomes"] = choice.outcomes
            choices.append(content)
        return self._object(choices, is_chunk=False) | {"usage": self.usage()}

    def _echo(self, place: int) -> str:
        """Return what stands before a choice."""
        if not self._plan.echoes:
            return ""
        return self._resources.tokenizer.decode(self._call.requests[place].prompt_ids, skip_special_tokens=False)

    def _object(self, choices: list[dict[str, Any]], *, is_chunk: bool) -> dict[str, Any]:
        kind = "text_completion" if self._kind == "text" else f"chat.completion{'.chunk' if is_chunk else ''}"
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
        }

    def _tokens(self, choice: _ChoiceText, chunk: StreamChunk, time_s: float) -> list[dict[str, Any]]:
        time_ms = round(1e3 * (time_s - self._call.started_s), 3)
        return [
            {"id": token_id, "text": choice.detokenizer.push(token_id), "origin": origin, "time_ms": time_ms}
            for token_id, origin in zip(chunk.token_ids, chunk.origins, strict=True)
        ]

    @staticmethod
    def _take_logprobs(choice: _ChoiceText, logprobs: Sequence[TokenLogprob]) -> None:
        """Keep the log-probabilities of tokens, and where each token begins: a character may take several of them."""
        choice.logprobs += logprobs
        for some in logprobs:
            choice.offsets.append(choice.num_characters)
            choice.num_characters += len(choice.measure.push(some.token_id))

    def _logprobs(self, choice: _ChoiceText, first: int) -> dict[str, Any] | None:
        """Return the log-probabilities of a choice's tokens from the ``first`` on."""
        if not self._reports_logprobs:
            return None
        logprobs = choice.logprobs[first:]
        if self._kind == "chat":
            return {"content": [self._chat_logprob(some) for some in logprobs], "refusal": None}
        return {
            "tokens": [self._spelled(some.token_id) for some in logprobs],
            "token_logprobs": [some.logprob_nats for some in logprobs],
            "top_logprobs": [{self._spelled(token): value for token, value in some.top} for some in logprobs],
            "text_offset": choice.offsets[first:],
        }

    def _chat_logprob(self, some: TokenLogprob) -> dict[str, Any]:
        top = [self._named(token, value) for token, value in some.top]
        return self._named(some.token_id, some.logprob_nats) | {"top_logprobs": top}

    def _named(self, token_id: int, logprob_nats: float) -> dict[str, Any]:
        data = self._resources.tokenizer.token_bytes(token_id)
        return {"token": data.decode(errors="replace"), "logprob": logprob_nats, "bytes": list(data)}

    def _spelled(self, token_id: int) -> str:
        """Return a token's text; bytes that are no whole character as OpenAI's API writes them: keys keep apart."""
        data = self._resources.tokenizer.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _text(self, token_id: int) -> str:
        return self._resources.tokenizer.token_bytes(token_id).decode(errors="replace")
