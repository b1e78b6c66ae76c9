"""``forerun mpc reproduce``: a task from nothing to a table."""

import argparse
from pathlib import Path

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_json_option, add_threads_option
from forerun.cli.progress import progress_bars

_STUDIES = ("smoke", "pendulum", "pointmaze", "halfcheetah-quick", "halfcheetah", "walker2d", "push")


_EPILOG = """\
examples:
  forerun mpc reproduce --task smoke --out smoke
  forerun mpc reproduce --task pendulum --seeds 3 --out pendulum     three data sets and trainings
  forerun mpc reproduce --task halfcheetah                           an hour; cut off, the same command goes on
"""


def add_reproduce(actions: Commands) -> None:
    """Add the action."""
    parser = actions.add_parser(
        "reproduce",
        help="collect, train, compare, ask for something new, damage, adapt",
        description="Does all of it for one task and writes results.json, a plot and a GIF. Data and models that are "
        "in the folder are used again. The status is 1 where the known optimum is missed by more than it may.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", required=True, choices=_STUDIES, help="smoke is the double integrator")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the study (default: mpc-TASK)")
    parser.add_argument("--seeds", type=int, metavar="N", help="data sets and trainings (default: the study's)")
    parser.add_argument("--episodes", type=int, metavar="N", help="of each way and seed (default: the study's)")
    parser.add_argument("--steps", type=int, metavar="N", help="optimiser steps of each model (default: the study's)")
    add_threads_option(parser)
    add_json_option(parser)
    parser.set_defaults(action=_reproduce)


def _reproduce(args: argparse.Namespace) -> int:
    from dataclasses import replace

    import torch

    from forerun.core.errors import MissingDependencyError
    from forerun.recipes.mpc.figure import draw_results
    from forerun.recipes.mpc.report import report_page
    from forerun.recipes.mpc.reproduce import reproduce
    from forerun.recipes.mpc.show import render_study
    from forerun.recipes.mpc.studies import study
    from forerun.recipes.mpc.table import result_lines

    torch.set_num_threads(args.threads)
    asked = {"num_seeds": args.seeds, "num_episodes": args.episodes, "num_train_steps": args.steps}
    plan = replace(study(args.task), **{name: value for name, value in asked.items() if value is not None})
    folder: Path = args.out or Path(f"mpc-{args.task}")
    with progress_bars() as show:
        results = reproduce(plan, folder, report=show)
    for line in result_lines(results):
        write_line(line)
    (folder / "report.md").write_text(report_page(results), encoding="utf-8")
    written = ["results.json", "report.md"]
    try:
        draw_results(results, folder / "results.png")
        render_study(folder / "models-0", folder / "episode.gif")
        written += ["results.png", "episode.gif"]
    except MissingDependencyError as error:
        write_line(f"no pictures: {error}")
    write_line(f"wrote {', '.join(str(folder / name) for name in written)}")
    if args.json is not None:
        write_json(args.json, results)
    regrets = [bar for bar in results["bars"] if bar["name"].startswith("regret")]
    return 0 if all(bar["is_met"] for bar in regrets) else 1
