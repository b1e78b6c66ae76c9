"""``forerun generate``: complete one prompt, the text streaming to standard output."""

import argparse
import sys
from contextlib import closing
from dataclasses import replace
from typing import Any

from forerun.cli.console import write_json
from forerun.cli.engine_options import add_engine_options, engine_config
from forerun.cli.options import Commands, add_command, add_json_option, input_file
from forerun.cli.sampling_options import add_sampling_options, sampling_params
from forerun.core.errors import RequestError
from forerun.engine.constraint import Constraint


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "generate",
        summary="complete one prompt",
        description="Streams a completion to standard output; numbers go to standard error and to --json.",
        epilog="""examples:
  forerun generate "Name three rivers." --max-tokens 48 --temperature 0
  forerun generate "Is the sea salty?" --regex "(yes|no)"
  forerun generate "Describe a cat." --json-schema cat.schema.json --method ssd --stats
  forerun generate "Hello" --device cuda --target path/to/model --dtype float8 --tensor-parallel 2""",
    )
    parser.add_argument(
        "prompt", nargs="?", default="-", metavar="PROMPT", help="the prompt; - or none: read from standard input"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--chat", action="store_true", help="put the prompt through the model's chat template (default if it has one)"
    )
    form.add_argument("--raw", action="store_true", help="give the prompt to the model as it is")
    must_be = parser.add_mutually_exclusive_group()
    must_be.add_argument(
        "--json-schema", type=input_file, metavar="FILE", help="the output must be JSON that the schema in FILE accepts"
    )
    must_be.add_argument(
        "--regex", metavar="PATTERN", help="the output must match the regular expression (Rust's syntax), as a whole"
    )
    parser.add_argument("--stats", action="store_true", help="write the decoding metrics to standard error")
    add_json_option(parser)
    add_sampling_options(parser)
    add_engine_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Stream the completion."""
    from forerun.cli.streaming import metrics_lines, reply_dict, visible, write_stream
    from forerun.recipes.manifest import run_manifest
    from forerun.recipes.text_engine import open_engine

    params, config = replace(sampling_params(args), constraint=_constraint(args)), engine_config(args)
    text = _read_prompt(args.prompt)
    with closing(open_engine(config)) as engine:
        tokenizer = engine.tokenizer
        is_chat = not args.raw and (args.chat or tokenizer.chat_template is not None)
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}]) if is_chat else text
        reply = write_stream(engine.stream([prompt], params))
        metrics = engine.last_metrics
        notes = [
            f"{entry.logprob_nats:9.4f}  {visible(tokenizer.decode([entry.token_id]))!r}"
            + "".join(f"  {visible(tokenizer.decode([other]))!r} {nats:.4f}" for other, nats in entry.top)
            for entry in reply.logprobs
        ]
    if args.stats:
        notes += metrics_lines(metrics)
    for note in notes:
        sys.stderr.write(f"{note}\n")
    if args.json is not None:
        payload: dict[str, Any] = {"prompt": text, "is_chat": is_chat} | reply_dict(reply, metrics)
        write_json(args.json, payload | {"manifest": run_manifest(engine=config, sampling=params)})
    return 0


def _constraint(args: argparse.Namespace) -> Constraint | None:
    if args.regex is not None:
        return Constraint.regex(args.regex)
    if args.json_schema is None:
        return None
    try:
        return Constraint.json_schema(args.json_schema.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RequestError(f"{args.json_schema} is not UTF-8 text (byte {error.start})") from error


def _read_prompt(argument: str) -> str:
    if argument == "-":
        if sys.stdin.isatty():
            raise RequestError(
                'no prompt: write it behind the command, as in `forerun generate "The sea is"`, or pipe it in'
            )
        try:
            argument = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise RequestError(f"the prompt on standard input is not UTF-8 text (byte {error.start})") from error
    if not argument.strip():
        raise RequestError(f"prompt={argument!r}: must hold some text")
    return argument
