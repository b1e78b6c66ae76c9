"""From a body to what the engine takes: prompts as token ids, and sampling parameters."""

import asyncio
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from forerun.core.errors import MissingDependencyError, RequestError
from forerun.engine.constraint import Constraint
from forerun.engine.sampling import SamplingParams
from forerun.engine.server.api_error import ApiError
from forerun.engine.server.constraint_fields import format_constraint, structured_constraint
from forerun.engine.server.engine_thread import Resources
from forerun.engine.server.schemas import ChatRequest, CompletionRequest, SamplingFields
from forerun.engine.server.tool_fields import FunctionDefinition
from forerun.engine.server.tool_prompt import calls_constraint, offered_functions, template_messages

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
    given["constraint"] = constraint_of(body)
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


def tool_names(body: CompletionRequest | ChatRequest) -> list[str]:
    """Return the names of the functions that the model may call.

    Raises:
        ApiError: 400: the fields for tools contradict each other.
    """
    return [function.name for function in _functions(body)] if isinstance(body, ChatRequest) else []


def constraint_of(body: CompletionRequest | ChatRequest) -> Constraint | None:
    """Return what the output must be.

    Raises:
        ApiError: 400: a field is at fault, or two contradict each other.
    """
    found: list[Constraint | None] = []
    if body.response_format is not None and body.structured_outputs is not None:
        raise ApiError(400, "response_format and structured_outputs: give one", param="structured_outputs")
    with _named("response_format"):
        found.append(None if body.response_format is None else format_constraint(body.response_format))
    with _named("structured_outputs"):
        found.append(None if body.structured_outputs is None else structured_constraint(body.structured_outputs))
    if isinstance(body, ChatRequest):
        functions = _functions(body)
        with _named("tools"):
            found.append(calls_constraint(body, functions))
    return next((some for some in found if some is not None), None)


async def compile_constraint(body: SamplingFields, params: SamplingParams, resources: Resources) -> None:
    """Compile what the output must be, aside from the event loop.

    Raises:
        ApiError: 400: it does not compile; 501: this installation can't.
    """
    if params.constraint is None:
        return
    fields = ("response_format", "structured_outputs")
    with _named(next((name for name in fields if getattr(body, name) is not None), "tools")):
        await asyncio.to_thread(resources.grammars.compile, params.constraint)


def _functions(body: ChatRequest) -> list[FunctionDefinition]:
    try:
        return offered_functions(body)
    except RequestError as error:
        raise request_error(error, param=str(error).partition(":")[0]) from error


@contextmanager
def _named(param: str) -> Generator[None]:
    """Turn an error of the engine into the answer that names a field."""
    try:
        yield
    except RequestError as error:
        raise request_error(error, param=param) from error
    except MissingDependencyError as error:
        raise ApiError(501, str(error), param=param) from error


def num_prompts(body: CompletionRequest | ChatRequest) -> int:
    """Return how many prompts a body has, before any is cut into tokens."""
    if isinstance(body, ChatRequest) or isinstance(body.prompt, str):
        return 1
    return 1 if body.prompt and isinstance(body.prompt[0], int) else len(body.prompt)


async def prompts_of(body: CompletionRequest | ChatRequest, resources: Resources) -> list[list[int]]:
    """Return the token ids of every prompt; text is cut into tokens aside from the event loop.

    Raises:
        ApiError: 400: the messages don't fit the chat template, or there is no prompt.
    """
    if isinstance(body, ChatRequest):
        tokenizer, functions = resources.tokenizer, _functions(body)
        with _named("messages"):
            messages, tools = template_messages(body.messages, functions, takes_tools=tokenizer.takes_tools)
        render = partial(tokenizer.apply_chat_template, tools=tools, variables=body.chat_template_kwargs)
        try:
            return [await asyncio.to_thread(render, messages)]
        except RequestError as error:
            field = str(error).partition(":")[0]
            raise request_error(error, param=field if field.startswith("chat_template") else "messages") from error
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
