"""``forerun pretrain reproduce`` and ``report``: the whole study, and the page about it."""

import argparse
import os
from pathlib import Path
from typing import Any

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option
from forerun.cli.pretrain_options import add_executor_options, add_place_options, open_executor
from forerun.cli.progress import progress_bars

_REPRODUCE = """\
Makes the whole study on a limited corpus: tunes the standard and the regularised recipe over sizes, trains ensembles,
gives the standard recipe more text, distils students; then writes the report. Every run is kept in OUT/runs: the same
command goes on where it was cut. Settings are chosen on the tune split; only the report opens the test split.

  smoke  two sizes on 8,192 tokens, minutes: shows that everything works, not that the claims hold
  cpu    four sizes on 32,768 tokens, meant for about an hour on two idle cores
  gpu    four sizes up to 28m on 2 million tokens, for one GPU and a corpus of your own; not run yet by its makers
"""
_REPRODUCE_EXAMPLES = """\
examples:
  forerun pretrain reproduce --scale smoke --out study
  forerun pretrain reproduce --scale cpu --out study --corpus my/texts
  forerun pretrain reproduce --scale cpu --out study --data data --workers 2
  forerun pretrain reproduce --scale cpu --out /shared/study --executor ray --address auto
"""
_REPORT = """\
Writes DIR/report.html, one page with nothing to load, and DIR/report.json. Opens the test split, unless these runs were
measured before.
"""


def add_reproduce(actions: Commands) -> None:
    """Add the action."""
    reproduce = add_command(
        actions,
        "reproduce",
        summary="make the whole study and its report",
        description=_REPRODUCE,
        epilog=_REPRODUCE_EXAMPLES,
    )
    reproduce.add_argument("--scale", choices=("smoke", "cpu", "gpu"), default="smoke", help="default: %(default)s")
    reproduce.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the study")
    text = reproduce.add_mutually_exclusive_group()
    text.add_argument(
        "--corpus",
        default="default",
        metavar="CORPUS",
        help="text to prepare, as 'forerun pretrain prepare' takes it (default: this machine's Python library)",
    )
    text.add_argument("--data", type=Path, metavar="DIR", help="a prepared corpus instead")
    add_executor_options(reproduce)
    add_place_options(reproduce)
    add_json_option(reproduce)
    reproduce.set_defaults(action=_reproduce)


def add_report(actions: Commands) -> None:
    """Add the action."""
    report = actions.add_parser("report", help="write the page about a study", description=_REPORT)
    report.add_argument("study", type=Path, metavar="DIR", help="folder of 'forerun pretrain reproduce'")
    add_json_option(report)
    report.set_defaults(action=_report)


def _reproduce(args: argparse.Namespace) -> int:
    from forerun.recipes.pretrain_study.report import write_report
    from forerun.recipes.pretrain_study.reproduce import reproduce
    from forerun.recipes.pretrain_study.scale import SCALES

    with progress_bars() as show:
        study = reproduce(
            args.out,
            SCALES[args.scale],
            corpus=args.corpus,
            data=args.data,
            executor=open_executor(args),
            report=show,
        )
        found = write_report(args.out, report=lambda done, total: show("test", done, total, ""))
    write_line(f"{study.num_runs} runs in {args.out / 'runs'}")
    _write_findings(args.out, found, args.json)
    return 0


def _report(args: argparse.Namespace) -> int:
    from forerun.recipes.pretrain_study.report import write_report

    with progress_bars() as show:
        found = write_report(args.study, report=lambda done, total: show("test", done, total, ""))
    _write_findings(args.study, found, args.json)
    return 0


def _write_findings(folder: Path, found: dict[str, Any], json_file: Path | None) -> None:
    for claim in found["claims"]:
        interval = claim["found"]
        number = "not identified"
        if interval is not None:
            value, low, high = (
                "beyond" if interval[name] is None else f"{interval[name]:.4g}" for name in ("value", "low", "high")
            )
            number = f"{value} [{low}, {high}] {claim['unit']}"
        write_line(f"{claim['verdict']:<13}  {claim['statement']}: {number} (paper: {claim['paper']})")
    write_line(f"wrote {os.fspath(folder / 'report.html')}")
    if json_file is not None:
        write_json(json_file, found)
