"""Options from defaults, environment and arguments: precedence, parsing, and errors that name the cause."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from forerun.core.config import environment_variable, option_types, option_value, resolve
from forerun.core.errors import ConfigError
from forerun.engine.config import EngineConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    width_tokens: int | None = None
    rule: Literal["fast", "slow", "none"] = "fast"
    limit_s: float = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    name: str | None = "default"
    cores: tuple[int, ...] | None = None
    verbose: bool = False
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.verbose and self.name is None:
            raise ConfigError("verbose=True: needs a name")


def test_defaults_without_any_source():
    resolved = resolve(Outer, arguments={}, environ={"PATH": "/bin", "HOME": "/"})
    assert resolved.config == Outer()
    assert set(resolved.origins.values()) == {"default"}


def test_argument_beats_environment_beats_default():
    environ = {"FORERUN_INNER_RULE": "slow", "FORERUN_NAME": "from environment"}
    resolved = resolve(Outer, arguments={"name": "from argument"}, environ=environ)
    assert resolved.config == Outer(name="from argument", inner=Inner(rule="slow"))
    assert (resolved.origins["name"], resolved.origins["inner.rule"]) == ("argument", "environment")
    assert resolved.origins["verbose"] == "default"


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("FORERUN_INNER_WIDTH_TOKENS", "7", "inner.width_tokens", 7),
        ("FORERUN_INNER_WIDTH_TOKENS", "none", "inner.width_tokens", None),
        ("FORERUN_INNER_RULE", "none", "inner.rule", "none"),
        ("FORERUN_INNER_LIMIT_S", "0.5", "inner.limit_s", 0.5),
        ("FORERUN_CORES", "0, 3", "cores", (0, 3)),
        ("FORERUN_VERBOSE", "Yes", "verbose", True),
        ("FORERUN_VERBOSE", "0", "verbose", False),
        ("FORERUN_NAME", "none", "name", None),
    ],
)
def test_environment_values_get_the_type_of_their_option(variable, text, key, value):
    got = option_value(resolve(Outer, arguments={}, environ={variable: text}).config, key)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("FORERUN_INNER_WIDTH_TOKENS", "many", r"FORERUN_INNER_WIDTH_TOKENS='many': must be a whole number"),
        ("FORERUN_INNER_LIMIT_S", "", r"FORERUN_INNER_LIMIT_S='': must be a number"),
        ("FORERUN_INNER_RULE", "quick", r"FORERUN_INNER_RULE='quick': must be one of fast, slow, none"),
        ("FORERUN_CORES", "0;1", r"FORERUN_CORES='0;1': must be a whole number"),
        ("FORERUN_VERBOSE", "maybe", r"FORERUN_VERBOSE='maybe': must be one of 1, true"),
        (
            "FORERUN_INER_RULE",
            "slow",
            r"FORERUN_INER_RULE: unknown environment variable; did you mean FORERUN_INNER_RULE",
        ),
    ],
)
def test_bad_environment_is_an_error_that_names_it(variable, text, message):
    with pytest.raises(ConfigError, match=message):
        resolve(Outer, arguments={}, environ={variable: text})


def test_unknown_argument_names_the_nearest_or_lists_all():
    with pytest.raises(ConfigError, match=r"inner\.rul: unknown option; did you mean inner\.rule\?"):
        resolve(Outer, arguments={"inner.rul": "slow"}, environ={})
    with pytest.raises(ConfigError, match=r"qqq: unknown option; allowed: cores, inner\.limit_s"):
        resolve(Outer, arguments={"qqq": 1}, environ={})


def test_checks_of_the_class_itself_apply():
    with pytest.raises(ConfigError, match="needs a name"):
        resolve(Outer, arguments={"name": None}, environ={"FORERUN_VERBOSE": "1"})


def test_debug_variable_is_no_option():
    assert resolve(Outer, arguments={}, environ={"FORERUN_DEBUG": "2"}).config == Outer()


def test_every_engine_option_has_a_variable_of_its_own():
    variables = [environment_variable(key) for key, _ in option_types(EngineConfig)]
    assert len(set(variables)) == len(variables)
    assert "FORERUN_SPECULATIVE_FAN_OUT" in variables
