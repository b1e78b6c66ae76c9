"""What clients may send. An unknown field is an error, a wrong type too: nothing is dropped or converted."""

from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from forerun.engine.server.api_error import ApiError
from forerun.engine.server.constraint_fields import ResponseFormat, StructuredOutputs
from forerun.engine.server.foreign_fields import instead_of
from forerun.engine.server.strict_model import Items, NullIsAbsent, Strict
from forerun.engine.server.tool_fields import Tool, ToolCall, ToolChoice

Method = Literal["none", "sequential", "ssd", "auto"]
_MAX_STOPS = 16
_MAX_ERRORS = 5
_TYPES = frozenset({"str", "int", "float", "bool", "NamedToolChoice"})
"""Alternatives of unions that could be taken for names of fields."""
_MOST_FAULTS = 100
"""Faults of a body beyond which they are counted and not told: telling one costs a hundred times its bytes."""
_MOST = 2**31 - 1


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool = Field(default=False, description="End with a chunk that has the usage.")


class SamplingFields(NullIsAbsent):
    """What completions and chat completions have in common."""

    model: str | None = Field(default=None, max_length=512, description="The served model's name.")
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1, le=128, description="Completions of each prompt.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=512)]
        | Annotated[Items[Annotated[str, Field(min_length=1, max_length=512)]], Field(max_length=_MAX_STOPS)]
        | None
    ) = None
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: (
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = Field(default=None, max_length=1024)
    user: str | None = Field(default=None, max_length=512, description="Taken and not used.")
    top_k: int | None = Field(default=None, ge=0, le=_MOST, description="Beyond OpenAI's API.")
    min_p: float | None = Field(default=None, ge=0, le=1, description="Beyond OpenAI's API.")
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100, description="Beyond OpenAI's API.")
    stop_token_ids: Items[Annotated[int, Field(ge=0, le=_MOST)]] | None = Field(default=None, max_length=1024)
    min_tokens: int | None = Field(default=None, ge=0, le=_MOST)
    ignore_eos: bool | None = None
    method: Method | None = Field(default=None, description="How to decode this request; the output is the same.")
    priority: int | None = Field(default=None, ge=-100, le=100, description="Smaller goes first.")
    cache_salt: str | None = Field(
        default=None, min_length=1, max_length=256, description="Share a prompt's beginning within this word only."
    )
    return_tokens: bool | None = Field(default=None, description="Add each token's id, text and origin.")
    return_outcomes: bool | None = Field(default=None, description="Add the outcomes that SSD prepared for each round.")
    response_format: ResponseFormat | None = Field(default=None, description="What the output must be.")
    structured_outputs: StructuredOutputs | None = None


class CompletionRequest(SamplingFields):
    """Body of ``/v1/completions``."""

    prompt: str | Items[str] | Items[int] | Items[Items[int]] = Field(description="Text or token ids, one or several.")
    max_tokens: int | None = Field(default=None, ge=1, le=_MOST)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = Field(default=None, description="Put the prompt before each completion.")
    best_of: int | None = Field(default=None, ge=1, le=128, description="Draw so many, return the n likeliest.")


class TextPart(Strict):
    """A part of a message that is text."""

    type: Literal["text"]
    text: str


class ChatMessage(NullIsAbsent):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Items[TextPart] | None = None
    tool_calls: Annotated[Items[ToolCall], Field(max_length=128)] | None = Field(
        default=None, description="Of the assistant."
    )
    tool_call_id: Annotated[str, Field(max_length=512)] | None = Field(
        default=None, description="Of a tool's message: the call that it answers."
    )

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("no_content", "content must be given")
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("not_assistant", "tool_calls belong to the role assistant")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise PydanticCustomError("not_tool", "tool_call_id belongs to the role tool, which needs it")
        return self

    @property
    def text(self) -> str:
        """The content as one text."""
        content = self.content or ""
        return content if isinstance(content, str) else "".join(part.text for part in content)


class ChatRequest(SamplingFields):
    """Body of ``/v1/chat/completions``."""

    messages: Items[ChatMessage] = Field(min_length=1, max_length=2048)
    max_tokens: int | None = Field(default=None, ge=1, le=_MOST)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=_MOST)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: Annotated[Items[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: (
        Annotated[dict[Annotated[str, Field(max_length=64)], bool | int | float | str], Field(max_length=16)] | None
    ) = Field(default=None, description="Variables of the model's chat template, such as enable_thinking.")


class TokenizeRequest(Strict):
    """Body of ``/tokenize``."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = False


class DetokenizeRequest(Strict):
    """Body of ``/detokenize``."""

    model: str | None = None
    tokens: Items[Annotated[int, Field(ge=0, le=_MOST)]]


BodyT = TypeVar("BodyT", bound=BaseModel)


def parse_body(schema: type[BodyT], content: bytes) -> BodyT:
    """Read a body.

    Args:
        schema: What it must be.
        content: The bytes.

    Raises:
        ApiError: 400, which names every field at fault.
    """
    try:
        return schema.model_validate_json(content)
    except ValidationError as error:
        if error.error_count() > _MOST_FAULTS:
            message = f"body: {error.error_count()} parts of it are at fault; see /openapi.json for what it may hold"
            raise ApiError(400, message, code="invalid_value") from error
        raise _api_error(error.errors(include_url=False, include_context=False, include_input=False)) from error


def _api_error(details: list[ErrorDetails]) -> ApiError:
    unknown = [_path(detail) for detail in details if detail["type"] == "extra_forbidden"]
    if unknown:
        names = ", ".join(name + instead_of(name) for name in unknown[:_MAX_ERRORS])
        return ApiError(
            400, f"not supported: {names}; leave it out or see /openapi.json for what is", param=unknown[0],
            code="unsupported_parameter",
        )  # fmt: skip
    said = dict.fromkeys(f"{_path(detail) or 'body'}: {detail['msg']}" for detail in details)
    param = _path(details[0]) or None
    return ApiError(400, "; ".join(list(said)[:_MAX_ERRORS]), param=param, code="invalid_value")


def _path(detail: ErrorDetails) -> str:
    """Return the way to a field, without the names of the alternatives of a union, which are no part of the body."""
    way = [part for part in detail["loc"] if isinstance(part, int) or (part.isidentifier() and part not in _TYPES)]
    if detail["type"] == "extra_forbidden":  # its name is the client's, and may be anything
        own = detail["loc"][-1]
        way = [*(way[:-1] if way and way[-1] == own else way), own]
    return ".".join(map(str, way))[:200]
