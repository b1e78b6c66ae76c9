"""What an output must look like: a JSON schema, a regular expression, a choice of texts, or a grammar.

A value that can be compared, kept and sent. Its form is checked here; whether it compiles is known once a model's
vocabulary is (:mod:`forerun.engine.constraint_grammar`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal, Self, cast, get_args

from forerun.core.errors import RequestError

ConstraintKind = Literal["json_schema", "regex", "choice", "grammar"]

MAX_CHARACTERS: Final = 64 * 1024
"""Of a constraint's text. What compiles from it is bounded apart from that."""
MAX_CHOICES: Final = 1024
_SHOWN: Final = 80
_MOST_REMAINDERS: Final = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraint:
    """A language of texts, to which the output of a request belongs.

    The whole output must match, from its first character to its last. Use the class methods to make one.

    Attributes:
        kind: What ``text`` is.
        text: A JSON schema or a JSON list of texts, as JSON; a regular expression; or a grammar in llguidance's form of
            Lark, which begins at ``start``.

    Raises:
        RequestError: The text is empty, too long, or not of its kind.
    """

    kind: ConstraintKind
    text: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConstraintKind):
            raise RequestError(f"constraint kind={self.kind!r}: must be one of {', '.join(get_args(ConstraintKind))}")
        if not isinstance(self.text, str) or not self.text:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RequestError(f"{self.kind}={self.text!r}: must be a text, and not empty")
        if len(self.text) > MAX_CHARACTERS:
            raise RequestError(
                f"{self.kind}={self.text[:_SHOWN]!r}...: has {len(self.text)} characters; at most {MAX_CHARACTERS} are "
                "allowed: simplify it"
            )
        if self.kind == "json_schema":
            _check_schema(self.text)
        elif self.kind == "choice":
            _check_choices(self.text)

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Self:
        """Ask for JSON that a schema accepts.

        Args:
            schema: The schema, or its JSON text.

        Raises:
            RequestError: It is no JSON schema.
        """
        return cls(kind="json_schema", text=schema if isinstance(schema, str) else _to_json(schema))

    @classmethod
    def json_object(cls) -> Self:
        """Ask for any JSON object."""
        return cls(kind="json_schema", text='{"type": "object"}')

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """Ask for a text that a regular expression matches as a whole (Rust's syntax: no look-around, no references).

        Args:
            pattern: The regular expression.

        Raises:
            RequestError: It is empty or too long.
        """
        return cls(kind="regex", text=pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Self:
        """Ask for one of some texts.

        Args:
            texts: At least one, none empty.

        Raises:
            RequestError: There is none, or one is empty.
        """
        return cls(kind="choice", text=_to_json(list(texts)))

    @classmethod
    def grammar(cls, lark: str) -> Self:
        """Ask for a text that a context-free grammar derives.

        Args:
            lark: The grammar.

        Raises:
            RequestError: It is empty or too long.
        """
        return cls(kind="grammar", text=lark)


def _to_json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"constraint: can't be written as JSON ({error}); give plain JSON types") from error


def _parsed(text: str, kind: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{kind}={text[:_SHOWN]!r}: is not valid JSON ({error})") from error


def _check_schema(text: str) -> None:
    schema = _parsed(text, "json_schema")
    if not isinstance(schema, dict):
        raise RequestError(f'json_schema={text[:_SHOWN]}: must be a JSON object, such as {{"type": "object"}}')
    if "x-guidance" in schema:
        raise RequestError('json_schema: "x-guidance" sets options of the grammar, which are not a request\'s to set')
    _check_multiples(schema)


def _check_multiples(schema: Any) -> None:
    """Refuse what would make an automaton with too many remainders, a work that the library does not bound."""
    pending: list[Any] = [schema]
    multiple = 1
    while pending:
        part = pending.pop()
        fields = cast("dict[str, Any]", part) if isinstance(part, dict) else {}
        pending += cast("list[Any]", part) if isinstance(part, list) else fields.values()
        divisor = fields.get("multipleOf")
        if isinstance(divisor, int | float) and divisor > 0:
            multiple = math.lcm(multiple, int("".join(map(str, Decimal(str(divisor)).as_tuple().digits))))
        if multiple > _MOST_REMAINDERS:
            raise RequestError(
                f"json_schema: multipleOf={divisor}: without their decimal points, all multipleOf of a schema together "
                f"may have at most {_MOST_REMAINDERS} as their least common multiple"
            )


def _check_choices(text: str) -> None:
    choices = _parsed(text, "choice")
    texts = cast("list[Any]", choices) if isinstance(choices, list) else []
    if not 0 < len(texts) <= MAX_CHOICES or any(not isinstance(some, str) or not some for some in texts):
        raise RequestError(f"choice={text[:_SHOWN]}: must be a list of 1 to {MAX_CHOICES} texts, none empty")
