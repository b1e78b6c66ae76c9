"""The exception tree: everything under one base, every leaf a builtin too, the drawing true."""

import inspect
import re
from pathlib import Path

import pytest

from forerun.core import errors
from forerun.core.errors import ForerunError

ALL = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, ForerunError)]
BELOW_BASE = [error for error in ALL if error is not ForerunError]


def test_the_tree_is_not_empty():
    assert len(BELOW_BASE) >= 7


@pytest.mark.parametrize("error", BELOW_BASE, ids=lambda error: error.__name__)
def test_every_error_is_also_a_builtin_that_callers_know(error: type[ForerunError]):
    builtins = [base for base in error.__mro__ if base.__module__ == "builtins"]
    assert builtins[0] in {ValueError, RuntimeError, ImportError}


@pytest.mark.parametrize("error", BELOW_BASE, ids=lambda error: error.__name__)
def test_message_survives(error: type[ForerunError]):
    with pytest.raises(ForerunError, match=r"^what, value, allowed, what to do$"):
        raise error("what, value, allowed, what to do")


def test_the_drawing_names_every_error_and_no_other():
    drawn = set(re.findall(r"\b\w*Error\b", errors.__doc__.partition("Catch")[0]))
    assert drawn - {"ValueError", "RuntimeError", "ImportError"} == {error.__name__ for error in ALL}


def test_no_other_module_defines_an_error_outside_the_tree():
    source = Path(errors.__file__).parents[1]
    strays = [
        f"{file.relative_to(source)}: {match}"
        for file in source.rglob("*.py")
        if file != Path(errors.__file__)
        for match in re.findall(r"^class \w+\((?:\w*Error|\w*Exception)\b.*", file.read_text(), flags=re.MULTILINE)
    ]
    # An answer of the HTTP layer on its way to the one handler that writes it; it never leaves that package.
    assert set(strays) == {"engine/server/api_error.py: class ApiError(Exception):"}
