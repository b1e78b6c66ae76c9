"""``forerun race``: three ways to decode, side by side, on the same prompts."""

import argparse
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

from forerun.cli.console import write_json
from forerun.cli.engine_options import add_engine_options, engine_config
from forerun.cli.options import Commands, add_json_option, input_file, output_file
from forerun.core.config import unknown_name

if TYPE_CHECKING:
    from rich.console import Console

    from forerun.recipes.prompt_file import Prompt
    from forerun.recipes.race import RaceConfig
    from forerun.recipes.race_result import Racer, RaceResult

_RACERS: Final = ("ar", "sd", "ssd")
_MAX_SLOWDOWN: Final = 10.0


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "race",
        help="race the decoding methods on the same prompts",
        description="Decodes the same prompts autoregressively (ar), speculatively (sd) and speculative-speculatively "
        "(ssd), one after the other, and compares speed and outputs. The status is 1 where outputs differ that must "
        "be identical.",
    )
    parser.add_argument(
        "--prompts",
        type=input_file,
        metavar="FILE",
        help='one prompt a line, or JSON lines with "prompt" or "turns"; default: a few of our own in several kinds '
        "(questions, or openings of texts for a target without a chat template)",
    )
    parser.add_argument("--num-prompts", type=_count, metavar="N", help="race the first N prompts only")
    parser.add_argument(
        "--max-tokens", type=_count, default=128, metavar="N", help="most tokens a prompt (default 128)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="default 0: greedy")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling (default 0)")
    parser.add_argument("--ignore-eos", action="store_true", help="go on to --max-tokens whatever the model says")
    parser.add_argument(
        "--methods", type=_racers, default=_RACERS, metavar="LIST", help="which race: ar,sd,ssd or some of them"
    )
    parser.add_argument("--no-screen", action="store_true", help="plain lines, as where stdout is no terminal")
    parser.add_argument("--no-replay", action="store_true", help="leave out the replay of the timed runs")
    parser.add_argument(
        "--replay-slowdown", type=_slowdown, default=1.0, metavar="X", help="replay X times slower (default 1)"
    )
    parser.add_argument("--svg", type=output_file, metavar="FILE", help="also save a picture of the outcome")
    add_json_option(parser)
    add_engine_options(parser, without={"method"})
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the race, with a screen where there is a terminal for it."""
    from rich.console import Console

    from forerun.cli.race_report import PlainProgress, print_report, race_svg
    from forerun.cli.race_screen import fits
    from forerun.engine.sampling import SamplingParams
    from forerun.recipes.prompt_file import read_prompts
    from forerun.recipes.race import RaceConfig, race
    from forerun.recipes.text_engine import open_engine

    sampling = SamplingParams(
        temperature=args.temperature, max_tokens=args.max_tokens, seed=args.seed, ignore_eos=args.ignore_eos
    )
    engine = engine_config(args)
    prompts = _default_prompts(engine.target) if args.prompts is None else read_prompts(args.prompts)
    config = RaceConfig(engine=engine, sampling=sampling, prompts=prompts[: args.num_prompts], racers=args.methods)
    console = Console(highlight=False)
    if sys.stdout.isatty() and not args.no_screen and fits(console, num_panes=len(config.racers)):
        result = _race_on_screen(config, console, replay=not args.no_replay, slowdown=args.replay_slowdown)
    else:
        result = race(config, observer=PlainProgress(config), open_engine=open_engine)
    if args.json is not None:
        write_json(args.json, result.as_dict())
    if args.svg is not None:
        args.svg.write_text(race_svg(config, result), encoding="utf-8")
    print_report(result, console=console)
    return 1 if result.expects_identity and result.divergence is not None else 0


def _race_on_screen(config: "RaceConfig", console: "Console", *, replay: bool, slowdown: float) -> "RaceResult":
    from dataclasses import replace

    from forerun.cli.race_screen import RaceScreen
    from forerun.recipes.race import race
    from forerun.recipes.text_engine import open_engine

    screen = RaceScreen(config, console=console)
    with screen:
        result = race(replace(config, warmup_tokens=None), observer=screen, open_engine=open_engine)
        if replay:
            with suppress(KeyboardInterrupt):
                screen.replay(result, slowdown=slowdown)
    screen.print_final(result)
    return result


def _default_prompts(target: str) -> "tuple[Prompt, ...]":
    """Return questions, or openings of texts where the target is a folder of a model that only continues them."""
    from forerun.models.load import load_checkpoint
    from forerun.recipes.prompt_file import DEFAULT_OPENINGS, DEFAULT_PROMPTS

    if Path(target).is_dir() and load_checkpoint(target).tokenizer.chat_template is None:
        return DEFAULT_OPENINGS
    return DEFAULT_PROMPTS


def _racers(text: str) -> "tuple[Racer, ...]":
    from forerun.recipes.race_result import Racer

    allowed: tuple[Racer, ...] = get_args(Racer)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in allowed:
            raise argparse.ArgumentTypeError(str(unknown_name("method of the race", name, allowed)))
    return tuple(racer for racer in allowed if racer in names)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be >= 1")
    return count


def _slowdown(text: str) -> float:
    factor = float(text)
    if not 1 <= factor <= _MAX_SLOWDOWN:
        raise argparse.ArgumentTypeError(f"{text}: must be in [1, {_MAX_SLOWDOWN:g}]; 1 is real time")
    return factor
