"""The entry point ``forerun``: find the command, run it, and turn errors into one line and an exit status.

Exit status: 0 done; 1 the command ran and found a problem; 2 bad input; 130 stopped by Ctrl-C.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

import forerun
from forerun.cli.console import write_error
from forerun.core.errors import ForerunError

COMMANDS: Final = (
    "race",
    "generate",
    "chat",
    "serve",
    "train_draft",
    "pretrain",
    "bench",
    "mpc",
    "certify",
    "verify",
    "bounds",
    "world",
    "doctor",
    "config",
    "cite",
)
"""Modules of this package, in the order ``--help`` shows them. Each has ``add_parser(commands) -> ArgumentParser`` and
``run(args) -> int``, and imports torch or its subsystem only inside ``run``."""

_BAD_INPUT: Final = 2
_INTERRUPTED: Final = 130
_PIPE_CLOSED: Final = 141


class _Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviated option, nor do the commands below it: a misspelt option is an error."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every command of :data:`COMMANDS`; parsed arguments carry the command's ``run``."""
    parser = _Parser(
        prog="forerun",
        description="Exact LLM decoding that prepares for the outcome of the verification still running.",
        epilog="forerun COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"forerun {forerun.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"forerun.cli.{name}")
        module.add_parser(commands).set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; ``None``: those of the process.

    Returns:
        The exit status (see the module). Errors that are no :class:`ForerunError` are bugs and keep their traceback.

    Raises:
        SystemExit: From argparse: ``--help``, ``--version`` (0) and unknown options (2).
        ForerunError: With ``FORERUN_DEBUG`` set to 1 or more, for its traceback.
    """
    args = build_parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except ForerunError as error:
        if os.environ.get("FORERUN_DEBUG", "0") not in {"", "0"}:
            raise
        write_error(str(error))
        return _BAD_INPUT
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`forerun cite | head -1`): give Python's own flush at exit somewhere to write to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    return status
