"""Options of the engine as arguments: one for each field of its configuration, named and explained as the field is."""

import argparse
import os
from collections.abc import Callable, Collection
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin

from forerun.cli.config import attribute_docs
from forerun.core.config import option_types, parse_value, resolve
from forerun.core.errors import ConfigError
from forerun.engine.config import EngineConfig, SpeculativeConfig

_DEST: Final = "engine:"
_SHORT: Final = {"speculative.num_speculative_tokens": "-K", "speculative.branch_budget": "-B"}


def add_engine_options(parser: argparse.ArgumentParser, *, without: Collection[str] = ()) -> None:
    """Add an argument for every option of the engine.

    Args:
        parser: Gets the arguments; one that is not given leaves no trace, so that the environment counts.
        without: Dotted keys that the command sets itself.
    """
    meanings = attribute_docs(EngineConfig) | attribute_docs(SpeculativeConfig)
    group = parser.add_argument_group(
        "engine", "each also a FORERUN_* variable: see `forerun config show`, which prints the defaults"
    )
    for key, kind in option_types(EngineConfig):
        if key in without:
            continue
        name = key.rpartition(".")[2]
        names = ["--" + name.replace("_", "-")]
        if key in _SHORT:
            names.insert(0, _SHORT[key])
        group.add_argument(
            *names,
            dest=_DEST + key,
            type=_reader(kind, name),
            default=argparse.SUPPRESS,
            metavar=_metavar(kind),
            help=meanings[name].replace("%", "%%"),
        )


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """Return the engine's configuration: the arguments given, else the environment, else the defaults.

    Args:
        args: Parsed by a parser with :func:`add_engine_options`.

    Raises:
        ConfigError: A ``FORERUN_*`` variable is wrong, or options contradict each other.
    """
    given = {name.removeprefix(_DEST): value for name, value in vars(args).items() if name.startswith(_DEST)}
    return resolve(EngineConfig, arguments=given, environ=os.environ).config


def _reader(kind: Any, name: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return parse_value(text, kind, name=name)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _metavar(kind: Any) -> str:
    """Return a word for the values of a type: the choices themselves where they are few."""
    options: tuple[Any, ...] = get_args(kind)
    origin = get_origin(kind)
    if origin is Literal:
        return "|".join(map(str, options))
    if origin is tuple:
        return f"{_metavar(options[0])},..."
    if options:
        return _metavar(next(option for option in options if option is not NoneType))
    return {int: "N", float: "X"}.get(kind, "NAME")
