"""``forerun pretrain distill``: a small student of an ensemble, or of one run."""

import argparse
from pathlib import Path

from forerun.cli.options import Commands, add_command, add_json_option, add_number, add_threads_option
from forerun.cli.pretrain_options import (
    add_recipe_options,
    add_run_options,
    run_config,
    write_run,
)
from forerun.cli.progress import progress_bars

_DESCRIPTION = """\
Trains a student on the law of an ensemble: for every token of the text it learns what the members' average expects,
mixed with the text's own next token. The teacher reads the text along with it.

A run's folder as --ensemble, with a student of the same size, is self-distillation.
"""
_EPILOG = """\
examples:
  forerun pretrain ensemble runs/A runs/B --data data --out pair
  forerun pretrain distill --ensemble pair --data data --out runs --size 75k --epochs 16
  forerun pretrain distill --ensemble runs/A --data data --out runs --size 150k
"""


def add_distill(actions: Commands) -> None:
    """Add the action."""
    distill = add_command(
        actions, "distill", summary="train a student of an ensemble", description=_DESCRIPTION, epilog=_EPILOG
    )
    distill.add_argument(
        "--ensemble",
        type=Path,
        required=True,
        metavar="DIR",
        help="teacher: what 'forerun pretrain ensemble --out' wrote, or a run's folder",
    )
    add_number(distill, "--teacher-weight", 0.8, "share of the loss that is the teacher's")
    add_run_options(distill)
    add_recipe_options(distill)
    add_threads_option(distill)
    add_json_option(distill)
    distill.set_defaults(action=_distill)


def _distill(args: argparse.Namespace) -> int:
    import torch

    from forerun.pretraining.distill import DistillConfig, distill
    from forerun.pretraining.ensemble import read_ensemble
    from forerun.pretraining.prepared_corpus import open_corpus

    torch.set_num_threads(args.threads)
    config = DistillConfig(student=run_config(args), teacher_weight=args.teacher_weight)
    corpus = open_corpus(args.data)
    with progress_bars() as show:
        finished = distill(
            corpus,
            args.out,
            read_ensemble(args.ensemble),
            config,
            report=lambda done, total, detail: show("distill", done, total, detail),
        )
    write_run(finished, args.json)
    return 0
