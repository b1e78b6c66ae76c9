"""``forerun mpc bench``: what plans cost and what they are worth."""

import argparse
from pathlib import Path

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_json_option, add_number, add_threads_option, output_file
from forerun.cli.progress import progress_bars

_EPILOG = """\
example:
  forerun mpc bench --models models --plot pareto.png
"""


def add_bench(actions: Commands) -> None:
    """Add the action."""
    parser = actions.add_parser(
        "bench",
        help="latency against return, of many ways to plan",
        description="Runs sample-score-rank in several sizes, MPPI, and MPPI of the package pytorch_mppi where it is "
        "installed: episodes for the return, single plans in turn for the latency. Ways that no other one beats in "
        "both are marked with a star.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="from train or adapt")
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 64], metavar="N", help="candidates of a plan")
    parser.add_argument(
        "--steps",
        type=_steps,
        nargs="+",
        default=[(2, 1), (2, 2), (4, 4), (8, 8)],
        metavar="P/D",
        help="denoising steps of proposal and dynamics (default: 2/1 2/2 4/4 8/8)",
    )
    add_number(parser, "--episodes", 4, "of each way, side by side")
    add_number(parser, "--plans", 20, "of each way, one by one")
    add_number(parser, "--seed", 0, "of starts and planning")
    parser.add_argument("--plot", type=output_file, metavar="FILE", help="also draw it, .png")
    add_threads_option(parser)
    add_json_option(parser)
    parser.set_defaults(action=_bench)


def _steps(text: str) -> tuple[int, int]:
    first, separator, second = text.partition("/")
    if not (separator and first.isdecimal() and second.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}: must be two numbers such as 2/1")
    return int(first), int(second)


def _bench(args: argparse.Namespace) -> int:
    import torch

    from forerun.recipes.mpc.bench import BenchConfig, bench
    from forerun.recipes.mpc.contenders import opened
    from forerun.recipes.mpc.figure import draw_bench

    torch.set_num_threads(args.threads)
    config = BenchConfig(
        samples=tuple(args.samples),
        steps=tuple(args.steps),
        num_episodes=args.episodes,
        num_plans=args.plans,
        seed=args.seed,
    )
    with progress_bars() as show:
        found = bench(opened(args.models), config=config, report=show)
    write_line(f"{'':3}{'':55}{'return':>10}  {'interval':<22}{'CPU ms/plan':>12}")
    for row in found["rows"]:
        interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
        write_line(
            f"{'*' if row['is_unbeaten'] else '':3}{row['summary']:<55}{row['return']:>10.3f}  {interval:<22}"
            f"{row['plan_cpu_ms']:>12.2f}"
        )
    for name, reason in found["left_out"].items():
        write_line(f"left out {name}: {reason}")
    if args.plot is not None:
        draw_bench(found, args.plot)
        write_line(f"wrote {args.plot}")
    if args.json is not None:
        write_json(args.json, found)
    return 0
