"""Configuration from several sources: defaults, ``FORERUN_*`` environment variables, and explicit arguments.

Works on any tree of configuration dataclasses. A key is dotted (``speculative.fan_out``); its environment variable is
the key in upper case behind ``FORERUN_`` (``FORERUN_SPECULATIVE_FAN_OUT``).
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Final, Generic, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from forerun.core.errors import ConfigError

Origin = Literal["default", "environment", "argument"]

_PREFIX: Final = "FORERUN_"
_NOT_OPTIONS: Final = frozenset({"FORERUN_DEBUG"})
"""Variables that are read elsewhere and name no option."""

_BOOLEANS: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved(Generic[ConfigT]):
    """A configuration and where each value of it comes from.

    Attributes:
        config: The configuration.
        origins: For each dotted key, the source that won.
    """

    config: ConfigT
    origins: Mapping[str, Origin]


def resolve(
    config_type: type[ConfigT], *, arguments: Mapping[str, Any], environ: Mapping[str, str]
) -> Resolved[ConfigT]:
    """Build a configuration: an argument wins over the environment, the environment over the default.

    Args:
        config_type: A dataclass whose fields are plain values or further such dataclasses.
        arguments: Values by dotted key. Give only what the user gave.
        environ: Usually ``os.environ``; only its ``FORERUN_*`` entries are read.

    Returns:
        The configuration with the origin of each value.

    Raises:
        ConfigError: A key or a ``FORERUN_*`` variable names no option (the nearest one is named), a variable's text is
            no value of the option's type, or the configuration's own checks refuse the values.
    """
    types = dict(option_types(config_type))
    for key in arguments:
        if key not in types:
            raise unknown_name("option", key, types)
    values: dict[str, Any] = dict(_environment_values(types, environ))
    origins: dict[str, Origin] = dict.fromkeys(types, "default")
    origins |= dict.fromkeys(values, "environment")
    origins |= dict.fromkeys(arguments, "argument")
    values |= arguments
    return Resolved(config=_build(config_type, values, prefix=""), origins=origins)


def config_from_record(config_type: type[ConfigT], record: Mapping[str, Any]) -> ConfigT:
    """Return the options that ``dataclasses.asdict`` turned into JSON types; one that is missing has its default.

    Args:
        config_type: A dataclass whose nested options are dataclasses too.
        record: The options.

    Raises:
        ConfigError: An option is unknown or out of range.
    """
    types = dict(option_types(config_type))
    values = dict(_flat(record))
    for key in values:
        if key not in types:
            raise unknown_name("option", key, types)
    return _build(config_type, values, prefix="")


def option_types(config_type: type, *, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each option's dotted key with its type, in the order of the fields, nested dataclasses in place."""
    hints = get_type_hints(config_type)
    for field in fields(config_type):
        key = prefix + field.name
        if is_dataclass(hints[field.name]):
            yield from option_types(hints[field.name], prefix=key + ".")
        else:
            yield key, hints[field.name]


def environment_variable(key: str) -> str:
    """Return the environment variable of an option: ``speculative.fan_out`` gives ``FORERUN_SPECULATIVE_FAN_OUT``."""
    return _PREFIX + key.replace(".", "_").upper()


def option_value(config: object, key: str) -> Any:
    """Return the value at a dotted key."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def unknown_name(kind: str, name: str, allowed: Collection[str]) -> ConfigError:
    """Return the error for a name that is none of the allowed ones; it names the nearest, or all where none is near.

    Args:
        kind: What the name should have been: ``"option"``.
        name: The name got.
        allowed: Every valid name.
    """
    near = get_close_matches(name, allowed, n=1)
    advice = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(sorted(allowed))}"
    return ConfigError(f"{name}: unknown {kind}; {advice}")


def _environment_values(types: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    keys = {environment_variable(key): key for key in types}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(_PREFIX) or variable in _NOT_OPTIONS:
            continue
        if variable not in keys:
            raise unknown_name("environment variable", variable, [*keys, *_NOT_OPTIONS])
        yield keys[variable], parse_value(text, types[keys[variable]], name=variable)


def _build(config_type: type[ConfigT], values: Mapping[str, Any], *, prefix: str) -> ConfigT:
    hints = get_type_hints(config_type)
    own: dict[str, Any] = {}
    for field in fields(config_type):  # pyright: ignore[reportArgumentType]
        key = prefix + field.name
        if is_dataclass(hints[field.name]):
            own[field.name] = _build(hints[field.name], values, prefix=key + ".")
        elif key in values:
            own[field.name] = values[key]
    return config_type(**own)


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(cast(Mapping[str, Any], value), f"{prefix}{name}.")
        else:
            yield prefix + name, value


def parse_value(text: str, kind: Any, *, name: str) -> Any:
    """Read one value of a field's type from text.

    Args:
        text: The text; ``none`` is ``None`` where the type has it, and commas part the items of a tuple.
        kind: The type: int, float, str, bool, a Literal, a tuple of one of these, or one of them or ``None``.
        name: What the value is for, for the message.

    Raises:
        ConfigError: The text is no value of the type.
    """
    options: tuple[Any, ...] = get_args(kind)
    origin = get_origin(kind)
    if origin in {Union, UnionType}:
        if NoneType in options and text.lower() == "none":
            return None
        [inner] = [option for option in options if option is not NoneType]
        return parse_value(text, inner, name=name)
    if origin is Literal:
        if text not in options:
            raise ConfigError(f"{name}={text!r}: must be one of {', '.join(map(str, options))}")
        return text
    if origin is tuple:
        return tuple(parse_value(part.strip(), options[0], name=name) for part in text.split(","))
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ConfigError(f"{name}={text!r}: must be one of {', '.join(_BOOLEANS)}")
        return _BOOLEANS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        expected = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise ConfigError(f"{name}={text!r}: must be {expected}") from None
