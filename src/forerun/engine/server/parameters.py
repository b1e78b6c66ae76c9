"""From a body to what the engine takes: prompts as token ids, and sampling parameters."""

import asyncio
from collections.abc import Sequence
from typing import Any

from forerun.core.errors import RequestError
from forerun.engine.sampling import SamplingParams
from forerun.engine.server.api_error import ApiError
from forerun.engine.server.engine_thread import Resources
from forerun.engine.server.schemas import ChatRequest, CompletionRequest, SamplingFields

_SAME_NAME = (
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "top_k", "min_p", "repetition_penalty",
    "min_tokens", "ignore_eos",
)  # fmt: skip
_COMPLETION_TOKENS = 16
"""OpenAI's default of ``max_tokens`` for ``/v1/completions``."""
_MESSAGE_CHARACTERS = 500


def sampling_params(body: CompletionRequest | ChatRequest) -> SamplingParams:
    """Return the parameters of a body, with OpenAI's defaults.

    Raises:
        ApiError: 400: two contradict each other.
    """
    given = {name: value for name in _SAME_NAME if (value := getattr(body, name)) is not None}
    given |= _common(body)
    if isinstance(body, ChatRequest):
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise ApiError(400, "max_tokens and max_completion_tokens: mean the same; give one", param="max_tokens")
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs: needs logprobs=true", param="top_logprobs")
        given["max_tokens"] = body.max_completion_tokens or body.max_tokens
        given["logprobs"] = (body.top_logprobs or 0) if body.logprobs else None
    else:
        given["max_tokens"] = body.max_tokens or _COMPLETION_TOKENS
        given["logprobs"] = body.logprobs
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options: needs stream=true", param="stream_options")
    try:
        return SamplingParams(**given)
    except RequestError as error:
        raise request_error(error) from error


def _common(body: SamplingFields) -> dict[str, Any]:
    stop = body.stop or []
    return {
        "stop": (stop,) if isinstance(stop, str) else tuple(stop),
        "stop_token_ids": tuple(body.stop_token_ids or ()),
        "logit_bias": {int(token): bias for token, bias in (body.logit_bias or {}).items()},
    }


async def prompts_of(body: CompletionRequest | ChatRequest, resources: Resources) -> list[list[int]]:
    """Return the token ids of every prompt; text is cut into tokens aside from the event loop.

    Raises:
        ApiError: 400: the messages don't fit the chat template, or there is no prompt.
    """
    if isinstance(body, ChatRequest):
        messages = [message.for_template() for message in body.messages]
        try:
            return [await asyncio.to_thread(resources.tokenizer.apply_chat_template, messages)]
        except RequestError as error:
            raise request_error(error, param="messages") from error
    prompt = body.prompt
    if isinstance(prompt, str):
        return [await asyncio.to_thread(resources.tokenizer.encode, prompt)]
    if not prompt:
        raise ApiError(400, "prompt: is empty; give a text, token ids, or a list of either", param="prompt")
    return [
        [part for part in prompt if isinstance(part, int)] if isinstance(some, int)
        else await asyncio.to_thread(resources.tokenizer.encode, some) if isinstance(some, str)
        else some
        for some in (prompt[:1] if isinstance(prompt[0], int) else prompt)
    ]  # fmt: skip


def check_room(prompts: Sequence[Sequence[int]], params: SamplingParams, resources: Resources) -> None:
    """Refuse what the context does not hold: a limit that is asked for is kept or refused, never lowered.

    Raises:
        ApiError: 400.
    """
    longest = max(len(prompt) for prompt in prompts)
    wanted = params.max_tokens or 1
    if longest + wanted > resources.max_len:
        raise ApiError(
            400,
            f"the context holds {resources.max_len} tokens; the prompt has {longest} and max_tokens asks for {wanted}: "
            "shorten either",
            param="max_tokens" if longest < resources.max_len else None,
            code="context_length_exceeded",
        )


def request_error(error: RequestError, *, param: str | None = None) -> ApiError:
    """Return the answer to an error that the engine found."""
    text = str(error)
    name = text.split("=", 1)[0]
    return ApiError(
        400, text[:_MESSAGE_CHARACTERS], param=param or (name if name.isidentifier() else None), code="invalid_value"
    )
