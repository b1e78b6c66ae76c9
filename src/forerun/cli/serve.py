"""``forerun serve``: the model behind OpenAI's API, with a page to try it."""

import argparse
import os
from dataclasses import MISSING, fields
from typing import Any, Final

from forerun.cli.config import attribute_docs
from forerun.cli.console import write_line
from forerun.cli.engine_options import add_engine_options, engine_config
from forerun.cli.options import Commands, add_command
from forerun.core.dependencies import import_optional
from forerun.engine.server.config import ServerConfig

_DEST: Final = "server:"
_KEYS_VARIABLE: Final = "FORERUN_API_KEYS"
_EXAMPLES: Final = """examples:
  forerun serve
  forerun serve --target path/to/model.gguf --draft ngram --port 9000
  FORERUN_API_KEYS=key1,key2 forerun serve --host 0.0.0.0 --max-num-seqs 8
  curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "Name three rivers."}], "max_tokens": 48}'
"""
_KINDS: Final[dict[Any, tuple[type, str]]] = {int: (int, "N"), float: (float, "X"), str: (str, "NAME")}


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "serve",
        summary="serve the model over HTTP, as OpenAI's API, with a page to try it",
        description="Serve the model over HTTP: OpenAI's completions and chat completions, metrics, and a page at /.\n"
        "Requests run side by side and may come at any time. SIGTERM or Ctrl-C lets those that run finish.\n"
        f"API keys are read from the variable {_KEYS_VARIABLE}, separated by commas: arguments can be seen.",
        epilog=_EXAMPLES,
    )
    group = parser.add_argument_group("server")
    meanings = attribute_docs(ServerConfig)
    for option in fields(ServerConfig):
        if option.name == "api_keys":
            continue
        name, meaning = "--" + option.name.replace("_", "-"), meanings[option.name].replace("%", "%%")
        common: dict[str, Any] = {"dest": _DEST + option.name, "default": argparse.SUPPRESS}
        if option.type is bool:
            group.add_argument(name, action=argparse.BooleanOptionalAction, help=meaning, **common)
        elif option.name == "cors_origins":
            group.add_argument(name, nargs="+", metavar="ORIGIN", help=meaning, **common)
        else:
            kind, metavar = _KINDS.get(option.type, (str, "NAME"))
            default = "" if option.default in {None, MISSING} else f" (default {option.default})"
            group.add_argument(name, type=kind, metavar=metavar, help=meaning + default, **common)
    add_engine_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    for package in ("uvicorn", "starlette", "pydantic", "prometheus_client"):
        import_optional(package, extra="server", purpose="the server")
    from forerun.engine.resources import EngineResources
    from forerun.engine.server.app import ServerApp
    from forerun.engine.server.json_log import start_log
    from forerun.engine.server.run import bind, serve

    config, engine = _server_config(args), engine_config(args)
    listener = bind(config)
    try:
        start_log()
        app = ServerApp(EngineResources(engine), config)
        serve(app, config, listener, on_listening=lambda url: write_line(f"Forerun serves at {url}"))
    finally:
        listener.close()
    return 0


def _server_config(args: argparse.Namespace) -> ServerConfig:
    given = {name.removeprefix(_DEST): value for name, value in vars(args).items() if name.startswith(_DEST)}
    keys = [key.strip() for key in os.environ.get(_KEYS_VARIABLE, "").split(",") if key.strip()]
    if "cors_origins" in given:
        given["cors_origins"] = tuple(given["cors_origins"])
    return ServerConfig(**given, api_keys=tuple(keys))
