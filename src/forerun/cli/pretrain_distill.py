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

With --sampled-tokens the ensemble also writes text, from nothing, and most of what the student reads is that. The text
and the likeliest tokens at each place of it are kept in RUNS/.sampled, for every student of this teacher.

A run's folder as --ensemble, with a student of the same size, is self-distillation.
"""
_EPILOG = """\
examples:
  forerun pretrain ensemble runs/A runs/B --data data --out pair
  forerun pretrain distill --ensemble pair --data data --out runs --size 75k --epochs 16
  forerun pretrain distill --ensemble pair --data data --out runs --size 75k --sampled-tokens 1000000
  forerun pretrain distill --ensemble pair --data data --out runs --sampled-tokens 1000000 --sampled-from members \\
    --loss text --weight-decay 0.1                     as in the paper: text of single members, hard targets
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
    add_number(distill, "--teacher-weight", 0.8, "share of the loss on real text that is the teacher's")
    distill.add_argument("--sampled-tokens", type=int, metavar="N", help="let the teacher write so much text")
    add_number(distill, "--sampled-share", 0.75, "share of what the student reads that is sampled")
    distill.add_argument(
        "--sampled-from",
        choices=("ensemble", "members"),
        default="ensemble",
        help="who writes: the average, or each member alone, in turn (default: %(default)s)",
    )
    add_number(distill, "--sampled-seed", 0, "root of the sampled text")
    distill.add_argument(
        "--loss",
        choices=("kl", "text"),
        default="kl",
        help="target: the teacher's law, or the next token of sampled and real text alone (default: %(default)s)",
    )
    add_run_options(distill)
    add_recipe_options(distill)
    add_threads_option(distill)
    add_json_option(distill)
    distill.set_defaults(action=_distill)


def _distill(args: argparse.Namespace) -> int:
    import torch

    from forerun.pretraining.distill import Distillation, DistillConfig, distill
    from forerun.pretraining.ensemble import read_ensemble
    from forerun.pretraining.prepared_corpus import open_corpus
    from forerun.pretraining.sampled_text import SampledTextConfig

    torch.set_num_threads(args.threads)
    sampled = None
    if args.sampled_tokens is not None:
        sampled = SampledTextConfig(num_tokens=args.sampled_tokens, source=args.sampled_from, seed=args.sampled_seed)
    distillation = Distillation(
        teacher_weight=args.teacher_weight, loss=args.loss, sampled=sampled, sampled_share=args.sampled_share
    )
    config = DistillConfig(student=run_config(args), distillation=distillation)
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
