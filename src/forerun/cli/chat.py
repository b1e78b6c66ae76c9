"""``forerun chat``: a conversation in the terminal, or line by line through a pipe."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING

from forerun.cli.console import write_error, write_json, write_line
from forerun.cli.engine_options import add_engine_options, engine_config
from forerun.cli.options import Commands, add_json_option
from forerun.cli.sampling_options import add_sampling_options, sampling_params
from forerun.core.errors import ForerunError

if TYPE_CHECKING:
    from forerun.cli.chat_session import ChatSession

_BAD_INPUT = 2


class _Interrupt:
    """What Ctrl-C has done since the user last wrote a line: the first stops a reply, the second leaves."""

    def __init__(self) -> None:
        self.is_set = False

    def handle(self, _signal: int, _frame: FrameType | None) -> None:
        """Take a SIGINT while a reply streams."""
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True

    @contextmanager
    def stops_the_reply(self) -> Iterator[None]:
        """Handle SIGINT here for a while."""
        before = signal.signal(signal.SIGINT, self.handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "chat",
        help="talk with the model",
        description="A conversation in the terminal; from a pipe, each line is a turn. /help lists the commands.",
    )
    parser.add_argument("--system", metavar="TEXT", help="system prompt; default: the model's own")
    add_json_option(parser)
    add_sampling_options(parser)
    add_engine_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Talk until the user leaves; the status is 2 where a line from a pipe could not be served."""
    from forerun.cli.chat_session import ChatSession
    from forerun.recipes.manifest import run_manifest
    from forerun.recipes.text_engine import open_engine

    params, config = sampling_params(args), engine_config(args)
    is_terminal = sys.stdin.isatty()
    with closing(ChatSession(config, params, open_engine=open_engine, system=args.system)) as session:
        if is_terminal:
            write_line("Talk to the model. /help lists the commands, Ctrl-C stops a reply, /quit leaves.")
        all_served = _converse(session, is_terminal=is_terminal)
    if args.json is not None:
        write_json(args.json, {"turns": session.turns, "manifest": run_manifest(engine=config, sampling=params)})
    return 0 if is_terminal or all_served else _BAD_INPUT


def _converse(session: "ChatSession", *, is_terminal: bool) -> bool:
    """Answer line after line; return whether every one could be served."""
    interrupt = _Interrupt()
    all_served = True
    for line in _terminal_lines(interrupt) if is_terminal else _piped_lines():
        try:
            with interrupt.stops_the_reply() if is_terminal else nullcontext():
                goes_on = session.handle(line, is_stopped=lambda: interrupt.is_set)
        except ForerunError as error:
            write_error(str(error))
            all_served, goes_on = False, True
        if not goes_on:
            break
    return all_served


def _piped_lines() -> Iterator[str]:
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    yield from sys.stdin


def _terminal_lines(interrupt: _Interrupt) -> Iterator[str]:
    """Ask for lines until Ctrl-D, or a second Ctrl-C."""
    with suppress(ImportError):  # absent on Windows, whose console does it itself
        import_module("readline")  # gives input() a history and the arrow keys
    while True:
        try:
            line = input("\n> ")
        except EOFError:
            write_line()
            return
        except KeyboardInterrupt:
            if interrupt.is_set:
                write_line()
                raise
            interrupt.is_set = True
            write_line("\n(Ctrl-C again or /quit to leave)")
            continue
        interrupt.is_set = False
        yield line
