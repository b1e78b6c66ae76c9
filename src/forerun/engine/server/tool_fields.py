"""Fields of a body that have to do with tools: functions of the client that the model may ask to be called."""

from typing import Annotated, Any, Literal

from pydantic import Field

from forerun.engine.server.strict_model import NullIsAbsent, Strict

_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionDefinition(NullIsAbsent):
    """A function."""

    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema; none: it has no arguments.")
    strict: bool | None = Field(
        default=None, description="Enforce the schema even where the model is free to call or not."
    )


class Tool(Strict):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Strict):
    """Which function."""

    name: _Name


class NamedToolChoice(Strict):
    """The one function to be called."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


class CalledFunction(Strict):
    """A call that the model made."""

    name: _Name
    arguments: str


class ToolCall(Strict):
    """A call in a message of the assistant."""

    id: Annotated[str, Field(max_length=512)]
    type: Literal["function"] = "function"
    function: CalledFunction
