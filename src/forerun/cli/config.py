"""``forerun config show``: the effective options, where each comes from, and how to set it."""

import argparse
import json
import os
import re
from dataclasses import is_dataclass
from typing import Any, Final, get_type_hints

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_json_option
from forerun.core.config import Resolved, environment_variable, option_types, option_value, resolve

_UNITS: Final = frozenset({"s", "ms", "bytes", "tokens", "bits", "nats"})


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser("config", help="show the effective options and where each comes from")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser(
        "show",
        help="print every option with its meaning and unit",
        description="Prints every option of the engine. A FORERUN_* environment variable overrides a default; "
        "an argument of a command overrides both.",
    )
    add_json_option(show)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print every option of the engine."""
    from forerun.engine.config import EngineConfig

    resolved = resolve(EngineConfig, arguments={}, environ=os.environ)
    rows = option_rows(EngineConfig, resolved)
    for row in rows:
        unit = f" [{row['unit']}]" if row["unit"] else ""
        write_line(f"# {row['meaning']}")
        write_line(f"{row['key']} = {json.dumps(row['value'])}{unit}   ({row['origin']}; set with {row['variable']})\n")
    if args.json is not None:
        write_json(args.json, {"options": rows})
    return 0


def option_rows(config_type: type, resolved: Resolved[Any]) -> list[dict[str, Any]]:
    """Describe every option of a configuration.

    Args:
        config_type: The dataclass that was resolved.
        resolved: Its values and their origins.

    Returns:
        For each option, in order: ``key``, ``value``, ``default``, ``unit`` (from the suffix of its name, or ``None``),
        ``origin``, ``variable`` (that overrides it) and ``meaning`` (from the docstring of its class).
    """
    meanings = _meanings(config_type)
    defaults = config_type()
    return [
        {
            "key": key,
            "value": option_value(resolved.config, key),
            "default": option_value(defaults, key),
            "unit": _unit(key),
            "origin": resolved.origins[key],
            "variable": environment_variable(key),
            "meaning": meanings[key],
        }
        for key, _ in option_types(config_type)
    ]


def _unit(key: str) -> str | None:
    suffix = key.rpartition("_")[2]
    return suffix if suffix in _UNITS else None


def _meanings(config_type: type, *, prefix: str = "") -> dict[str, str]:
    meanings = {prefix + name: text for name, text in attribute_docs(config_type).items()}
    for name, kind in get_type_hints(config_type).items():
        if is_dataclass(kind) and isinstance(kind, type):
            meanings |= _meanings(kind, prefix=f"{prefix}{name}.")
    return meanings


def attribute_docs(documented: type) -> dict[str, str]:
    """Return each attribute's text from the ``Attributes:`` section of a Google-style docstring, as one line."""
    _, _, section = (documented.__doc__ or "").partition("Attributes:\n")
    indented = re.match(r"(?:[ ]{4,}.*\n|\n)*", section + "\n")
    entries = re.split(r"^ {8}(\w+): ", indented.group() if indented else "", flags=re.MULTILINE)
    return {name: _plain(text) for name, text in zip(entries[1::2], entries[2::2], strict=True)}


def _plain(text: str) -> str:
    """Take reStructuredText's marks out of a docstring's words, and its line breaks."""
    return re.sub(r":\w+:`([^`]*)`", r"\1", " ".join(text.split())).replace("``", "")
