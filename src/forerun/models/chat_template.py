"""Chat templates: the Jinja program, shipped with a model, that turns messages into one prompt text."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Never

from jinja2 import TemplateError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from forerun.core.errors import ModelLoadError, RequestError

_OWN: Final = {"messages", "tools", "add_generation_prompt"}
"""Variables that have parameters of their own."""


class ChatTemplate:
    """A compiled chat template; it runs sandboxed, since it is code that came with the weights.

    Args:
        source: The Jinja text.
        special_tokens: Names the template may use, such as ``bos_token``.

    Attributes:
        takes_tools: Whether the template knows of tools.
        variables: What else may be set in it, such as ``enable_thinking``.

    Raises:
        ModelLoadError: The text is no valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
        try:
            self._template = environment.from_string(source)
            names = find_undeclared_variables(environment.parse(source)) - environment.globals.keys()
        except TemplateError as error:
            raise ModelLoadError(
                f"the model's chat template is not valid Jinja ({error}); mend chat_template in tokenizer_config.json"
            ) from error
        self._special_tokens = dict(special_tokens)
        self.takes_tools = "tools" in names
        self.variables = frozenset(names - _OWN - self._special_tokens.keys())

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, object]] = (),
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Return the prompt text.

        Args:
            messages: Dicts with ``role`` and ``content``, oldest first.
            add_generation_prompt: Whether to end with the opening of the assistant's turn.
            tools: As OpenAI's API describes them, for a template that takes them.
            variables: Values for some of :attr:`variables`.

        Raises:
            RequestError: The template refuses these messages, or lacks a variable.
        """
        for name in variables or ():
            if name not in self.variables:
                raise RequestError(
                    f"chat_template_kwargs.{name}: this model's chat template has no such variable; it has "
                    f"{', '.join(sorted(self.variables)) or 'none'}"
                )
        try:
            if not all(isinstance(message, Mapping) for message in messages):
                raise TypeError("a message is no dict")
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                tools=list(tools) or None,
                **self._special_tokens,
                **(variables or {}),
            )
        except (TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            raise RequestError(
                f"messages={list(messages)!r}: the model's chat template refused them ({error}); give a list of dicts "
                'such as {"role": "user", "content": "text"}, in an order that the model knows'
            ) from error


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> Never:
    raise TemplateError(message)
