"""Options that several commands share, and the checks that make a bad path an error before any work is done."""

import argparse
import os
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What a command's ``add_parser`` gets: the object whose ``add_parser(name, help=...)`` adds a command."""


def add_command(
    commands: Commands, name: str, *, summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """Add a command whose help keeps the line breaks of its texts.

    Args:
        commands: What ``add_parser`` gets.
        name: Of the command.
        summary: Its line in the list of commands.
        description: What ``--help`` says first.
        epilog: What it says last, such as examples.
    """
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_number(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, name: str, default: int | float, meaning: str
) -> None:
    """Add an option that takes a number of the kind of its default, which its help names.

    Args:
        parser: Gets the option.
        name: Such as ``--epochs``.
        default: An integer for counts, a float for anything else.
        meaning: A few words.
    """
    parser.add_argument(
        name,
        type=type(default),
        default=default,
        metavar="N" if isinstance(default, int) else "X",
        help=f"{meaning} (default: %(default)s)",
    )


def add_threads_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads N``."""
    add_number(parser, "--threads", 1, "CPU threads")


def add_tracker_options(parser: argparse.ArgumentParser) -> None:
    """Add who is told of curves: ``--tensorboard`` and ``--tracker``; :func:`use_tracker_options` heeds it."""
    parser.add_argument(
        "--tensorboard", action="store_true", help="write curves for TensorBoard into the folder of each run"
    )
    parser.add_argument("--tracker", choices=("wandb", "trackio"), help="send curves to W&B or trackio")


def use_tracker_options(args: argparse.Namespace) -> None:
    """Set what :func:`add_tracker_options` read, for this process and those it starts."""
    from forerun.training.trackers import TRACKERS_VARIABLE

    names = [*(["tensorboard"] if args.tensorboard else []), *([args.tracker] if args.tracker else [])]
    if names:
        os.environ[TRACKERS_VARIABLE] = ",".join(names)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json FILE``; a command that prints numbers writes all of them there (``args.json``, or ``None``)."""
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write every number to FILE as JSON")


def output_file(text: str) -> Path:
    """Check a path that will be written, so that a long run does not find out at its end.

    Args:
        text: The argument.

    Returns:
        The path. Its folder exists and can be written to; nothing is created.

    Raises:
        argparse.ArgumentTypeError: The folder is missing or write-protected, or the path is a folder.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: the folder {str(path.parent)!r} does not exist; create it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written to; name a file in a folder you can write to")
    return path


def input_file(text: str) -> Path:
    """Check a path that will be read.

    Args:
        text: The argument.

    Returns:
        The path of a readable file.

    Raises:
        argparse.ArgumentTypeError: There is no such file, it is a folder, or reading it is not allowed.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; name a file in it")
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text!r}: no such file")
    if not os.access(path, os.R_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be read; check its permissions")
    return path
