"""``forerun world bench``: other ways to a world model, on the same data and tasks."""

import argparse
from pathlib import Path

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number, add_threads_option
from forerun.cli.progress import progress_bars


def add_bench(actions: Commands) -> None:
    """Add the action."""
    bench = add_command(
        actions,
        "bench",
        summary="SIGReg against other ways to a world model",
        description="Trains world models on the data of the smoke study with SIGReg, without a regulariser, with\n"
        "variance and covariance, with an averaged target, and one over 196 tokens of a frozen encoder; lets all plan\n"
        "for the same tasks; writes OUT/comparison.json. The same command goes on where it was cut.",
        epilog="examples:\n  forerun world bench --out compared\n"
        "  forerun world bench --out world    # takes the data of 'world reproduce --scale smoke --out world'",
    )
    bench.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the comparison")
    add_number(bench, "--tasks", 100, "how many")
    add_number(bench, "--token-tasks", 10, "of these, for the model over tokens, whose plans are dear")
    add_threads_option(bench)
    add_json_option(bench)
    bench.set_defaults(action=_bench)


def _bench(args: argparse.Namespace) -> int:
    from forerun.recipes.world.comparison import ComparisonConfig, compare

    config = ComparisonConfig(num_tasks=args.tasks, num_token_tasks=args.token_tasks)
    with progress_bars() as show:
        rows = compare(args.out, config, report=show)
    for row in rows:
        write_line(row.line())
    if args.json is not None:
        write_json(args.json, {"rows": [row.to_json() for row in rows]})
    return 0
