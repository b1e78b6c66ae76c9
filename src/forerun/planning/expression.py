"""Objectives as text: ``speed(2.0) + 0.1 * energy() - 5 * keep_out(position=(0.2, 0.4))``.

The text is parsed and walked; nothing in it is executed.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from forerun.core.config import unknown_name
from forerun.core.errors import ConfigError
from forerun.planning import terms
from forerun.planning.objective import ComposableObjective, Constraint

_OPERATORS: Final = (ast.Add, ast.Sub, ast.Mult)
_SPEED_NAMES: Final = ("x_velocity", "velocity")


class ObjectiveLanguage:
    """The words an objective may use for a task.

    ``near(NAME=value, ...)``, ``speed(value)``, ``energy()``, ``keep_out(NAME=(low, high), ...)``, ``keep_in(...)`` and
    ``any_of(term, term, ...)``, with the task's own names for the numbers of its state; further words are given.

    Args:
        state_names: Of the task.
        words: Further objectives by name, such as ``task`` and ``value``, used as ``task()``.
    """

    def __init__(self, state_names: Sequence[str], words: Mapping[str, ComposableObjective]) -> None:
        self._indices = {name: index for index, name in enumerate(state_names)}
        self._makers: dict[str, Callable[..., ComposableObjective]] = {
            "near": lambda **targets: terms.near(self._named(targets, "near")),
            "speed": lambda target: terms.speed(target, index=self._speed_index()),
            "energy": terms.energy,
            "keep_out": lambda **box: terms.keep_out(self._box(box, "keep_out")),
            "keep_in": lambda **box: terms.keep_in(self._box(box, "keep_in")),
            "any_of": lambda *wishes: terms.any_of(wishes),
        }
        self._makers |= {name: _always(word) for name, word in words.items()}

    def objective(self, text: str) -> ComposableObjective:
        """Return the objective that a text describes.

        Args:
            text: Terms with +, - and * by numbers.

        Raises:
            ConfigError: The text can't be read, or a word or name is unknown.
        """
        found = self._value(_parsed(text), text)
        if not isinstance(found, ComposableObjective):
            raise ConfigError(f"objective {text!r}: is a number, not an objective; use a term, such as energy()")
        return found

    def constraint(self, text: str) -> Constraint:
        """Return the hard constraint ``keep_out(...)`` or ``keep_in(...)``.

        Raises:
            ConfigError: The text is something else.
        """
        node = _parsed(text)
        makers = {"keep_out": terms.depth_inside, "keep_in": terms.distance_outside}
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in makers:
            raise ConfigError(f"constraint {text!r}: must be keep_out(NAME=(low, high), ...) or keep_in(...)")
        box = self._box(self._keywords(node, text), node.func.id)
        return Constraint(makers[node.func.id](box), name=text)

    def _value(self, node: ast.expr, text: str) -> Any:
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return float(number)
            case ast.Tuple(elts=parts):
                return tuple(self._value(part, text) for part in parts)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._value(operand, text)
            case ast.BinOp(left=left, op=operator, right=right) if isinstance(operator, _OPERATORS):
                return _combined(self._value(left, text), operator, self._value(right, text), text)
            case ast.Call(func=ast.Name(id=word)):
                return self._called(word, node, text)
            case _:
                raise ConfigError(
                    f"objective {text!r}: can't read {ast.unparse(node)!r}; write terms such as speed(2.0) with "
                    "+, - and * by numbers"
                )

    def _called(self, word: str, node: ast.Call, text: str) -> ComposableObjective:
        if word not in self._makers:
            raise unknown_name("word of an objective", word, self._makers)
        arguments = [self._value(argument, text) for argument in node.args]
        try:
            return self._makers[word](*arguments, **self._keywords(node, text))
        except TypeError as error:
            raise ConfigError(
                f"objective {text!r}: {word} takes other arguments; write near(NAME=1.0), speed(2.0), energy(), "
                "keep_out(NAME=(0.2, 0.4))"
            ) from error

    def _keywords(self, node: ast.Call, text: str) -> dict[str, Any]:
        return {keyword.arg: self._value(keyword.value, text) for keyword in node.keywords if keyword.arg is not None}

    def _named(self, values: Mapping[str, Any], word: str) -> dict[int, Any]:
        if not values:
            raise ConfigError(f"{word}(): name at least one number of the state: {', '.join(self._indices)}")
        for name in values:
            if name not in self._indices:
                raise unknown_name("number of the state", name, self._indices)
        return {self._indices[name]: value for name, value in values.items()}

    def _box(self, faces: Mapping[str, Any], word: str) -> dict[int, tuple[float, float]]:
        for name, face in faces.items():
            if not isinstance(face, tuple) or len(face) != 2 or not face[0] < face[1]:
                raise ConfigError(f"{word}({name}={face}): must be (low, high), low below high")
        return self._named(faces, word)

    def _speed_index(self) -> int:
        for name in _SPEED_NAMES:
            if name in self._indices:
                return self._indices[name]
        raise ConfigError(f"speed(...): this task has no velocity; use near(NAME=...) of {', '.join(self._indices)}")


def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ConfigError(
            f"objective {text!r}: can't be read ({error.msg}); write terms such as speed(2.0) + 0.1 * energy()"
        ) from error


def _always(word: ComposableObjective) -> Callable[[], ComposableObjective]:
    """Return a word that takes no argument."""
    return lambda: word


def _combined(left: Any, operator: ast.operator, right: Any, text: str) -> Any:
    are_numbers = [isinstance(side, float) for side in (left, right)]
    if isinstance(operator, ast.Mult):
        if any(are_numbers):
            return left * right
    elif are_numbers[0] == are_numbers[1]:
        return left + right if isinstance(operator, ast.Add) else left - right
    raise ConfigError(f"objective {text!r}: terms are added and subtracted, and multiplied by numbers only")
