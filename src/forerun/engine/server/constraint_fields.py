"""Fields of a body that say what the output must be."""

from typing import Annotated, Any, Literal, cast

from pydantic import Discriminator, Field, Tag

from forerun.core.errors import RequestError
from forerun.engine.constraint import MAX_CHARACTERS, MAX_CHOICES, Constraint
from forerun.engine.server.strict_model import Items, NullIsAbsent, Strict

_Pattern = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]


class TextFormat(Strict):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(NullIsAbsent):
    """A JSON schema with a name."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    body: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(default=None, description="The schema is enforced whatever this says.")


class JsonSchemaFormat(Strict):
    """JSON that a schema accepts."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class RegexFormat(Strict):
    """Text that a regular expression matches as a whole. Beyond OpenAI's API."""

    type: Literal["regex"]
    pattern: _Pattern


def _tag(value: Any) -> str:
    """Return the alternative by its type, in brackets, which keeps it out of the names of fields at fault."""
    kind = cast("dict[str, Any]", value).get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"({kind})"


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("(text)")]
    | Annotated[JsonObjectFormat, Tag("(json_object)")]
    | Annotated[JsonSchemaFormat, Tag("(json_schema)")]
    | Annotated[RegexFormat, Tag("(regex)")],
    Discriminator(
        _tag,
        custom_error_type="response_format_type",
        custom_error_message="type must be text, json_object, json_schema or regex",
    ),
]


class StructuredOutputs(NullIsAbsent):
    """What the output must be, as vLLM's clients say it; one of the fields. Beyond OpenAI's API."""

    json_value: dict[str, Any] | None = Field(default=None, alias="json")
    json_object: Literal[True] | None = None
    regex: _Pattern | None = None
    choice: (
        Annotated[Items[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_CHOICES)] | None
    ) = None


def format_constraint(response_format: ResponseFormat) -> Constraint | None:
    """Return what a response format asks for.

    Raises:
        RequestError: The schema or the pattern is too large, or no schema.
    """
    if isinstance(response_format, JsonSchemaFormat):
        return Constraint.json_schema(response_format.json_schema.body)
    if isinstance(response_format, RegexFormat):
        return Constraint.regex(response_format.pattern)
    return Constraint.json_object() if isinstance(response_format, JsonObjectFormat) else None


def structured_constraint(wanted: StructuredOutputs) -> Constraint:
    """Return what ``structured_outputs`` asks for.

    Raises:
        RequestError: Not exactly one field is given, or it is at fault.
    """
    given = [name for name in ("json_value", "json_object", "regex", "choice") if getattr(wanted, name) is not None]
    if len(given) != 1:
        raise RequestError("structured_outputs: give one of json, json_object, regex and choice")
    if wanted.json_value is not None:
        return Constraint.json_schema(wanted.json_value)
    if wanted.regex is not None:
        return Constraint.regex(wanted.regex)
    return Constraint.json_object() if wanted.choice is None else Constraint.choice(wanted.choice)
