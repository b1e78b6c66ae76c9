"""``forerun serve``: the model behind OpenAI's API, with a page to try it."""

import argparse
import logging
import os
from contextlib import ExitStack
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, Final

from forerun.cli.config import attribute_docs
from forerun.cli.console import write_line
from forerun.cli.engine_options import add_engine_options, engine_config
from forerun.cli.options import Commands, add_command, input_file
from forerun.core.dependencies import import_optional
from forerun.engine.config import EngineConfig
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.replica_config import ReplicaConfig

if TYPE_CHECKING:
    from forerun.engine.server.run import Served

_DEST: Final = "server:"
_REPLICA_DEST: Final = "replicas:"
_KEYS_VARIABLE: Final = "FORERUN_API_KEYS"
_EXAMPLES: Final = """examples:
  forerun serve
  forerun serve --target path/to/model.gguf --draft ngram --port 9000
  FORERUN_API_KEYS=key1,key2 forerun serve --host 0.0.0.0 --max-num-seqs 8
  forerun serve --replicas 2                  # two engines on this machine, its cores divided between them
  curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "Name three rivers."}], "max_tokens": 48}'
"""
_LISTS: Final = {"cors_origins": "ORIGIN", "allowed_hosts": "NAME"}
"""Fields of several values, with what one is called."""
_KINDS: Final[dict[Any, tuple[type, str]]] = {
    int: (int, "N"),
    int | None: (int, "N"),
    float: (float, "X"),
    str: (str, "NAME"),
}


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
    _add_fields(group, ServerConfig, _DEST)
    group.add_argument(
        "--api-keys-file", type=input_file, metavar="FILE", help="file with API keys, one a line, beside the variable's"
    )
    group.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="least important events of the log; debug has /health, /ready and /metrics too (default %(default)s)",
    )
    replicas = parser.add_argument_group("replicas", "several engines behind one address, kept by Ray Serve")
    _add_fields(replicas, ReplicaConfig, _REPLICA_DEST)
    add_engine_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    for package in ("uvicorn", "starlette", "pydantic", "prometheus_client"):
        import_optional(package, extra="server", purpose="the server")
    from forerun.engine.server.json_log import log_to_stderr
    from forerun.engine.server.run import bind, serve

    config, engine = _server_config(args), engine_config(args)
    replicas = ReplicaConfig(**_given(args, _REPLICA_DEST))
    listener = bind(config)
    try:
        with log_to_stderr(logging.getLevelNamesMapping()[args.log_level.upper()]), ExitStack() as stack:
            app = _app(config, engine, replicas, stack)
            serve(app, config, listener, on_listening=lambda url: write_line(f"Forerun serves at {url}"))
    finally:
        listener.close()
    return 0


def _app(config: ServerConfig, engine: EngineConfig, replicas: ReplicaConfig, stack: ExitStack) -> "Served":
    """Return the application, with its engine in this process or with replicas that end with the stack."""
    if not replicas.needs_ray:
        from forerun.engine.resources import EngineResources
        from forerun.engine.server.app import ServerApp

        return ServerApp(EngineResources(engine), config)
    from forerun.engine.server.front import Front
    from forerun.engine.server.ray_replicas import ray_replicas

    deployed = stack.enter_context(ray_replicas(config, engine, replicas))
    return Front(deployed, config)


def _given(args: argparse.Namespace, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in vars(args).items() if name.startswith(prefix)}


def _server_config(args: argparse.Namespace) -> ServerConfig:
    given = _given(args, _DEST)
    keys = os.environ.get(_KEYS_VARIABLE, "").split(",")
    if args.api_keys_file is not None:
        keys += args.api_keys_file.read_text(encoding="utf-8", errors="replace").splitlines()
    given |= {name: tuple(given[name]) for name in _LISTS.keys() & given.keys()}
    return ServerConfig(**given, api_keys=tuple(key.strip() for key in keys if key.strip()))


def _add_fields(group: argparse._ArgumentGroup, config: type, prefix: str) -> None:
    """Add an argument for every field of a configuration."""
    meanings = attribute_docs(config)
    for option in fields(config):
        if option.name == "api_keys":
            continue
        names, meaning = ["--" + option.name.replace("_", "-")], meanings[option.name].replace("%", "%%")
        if option.name == "model_name":
            names.append("--served-model-name")
        common: dict[str, Any] = {"dest": prefix + option.name, "default": argparse.SUPPRESS}
        if option.type is bool:
            group.add_argument(*names, action=argparse.BooleanOptionalAction, help=meaning, **common)
        elif option.name in _LISTS:
            group.add_argument(*names, nargs="+", metavar=_LISTS[option.name], help=meaning, **common)
        else:
            kind, metavar = _KINDS.get(option.type, (str, "NAME"))
            default = "" if option.default in {None, MISSING, ""} else f" (default {option.default})"
            group.add_argument(*names, type=kind, metavar=metavar, help=meaning + default, **common)
