"""``forerun pretrain snapshots``: members one after the other, from a cyclic learning rate or a chain."""

import argparse

from forerun.cli.options import Commands, add_command, add_json_option, add_number, add_threads_option
from forerun.cli.pretrain_ensemble import add_ensemble_options, write_ensemble_result
from forerun.cli.pretrain_options import add_recipe_options, add_run_options, run_config
from forerun.cli.progress import progress_bars

_DESCRIPTION = """\
Trains members one after the other, and averages them. A cycle of --epochs takes the learning rate from its peak to 0;
the model at its end is a member, and the next cycle goes on from it, with the next seed's order of the text. With
--chain-weight each member after the first also learns the law of the one before it. --start fresh gives every member
weights of its own instead: with a chain that is chain distillation, without one the independent ensemble.

Members are runs in RUNS. The same command goes on where it was cut.
"""
_EPILOG = """\
examples:
  forerun pretrain snapshots --data data --out runs --size 25k --epochs 8 --cycles 6 --write snapshots
  forerun pretrain snapshots --data data --out runs --size 25k --epochs 8 --cycles 6 --chain-weight 0.5
  forerun pretrain snapshots --data data --out runs --size 25k --epochs 16 --cycles 3 --start fresh --chain-weight 0.5
"""


def add_snapshots(actions: Commands) -> None:
    """Add the action."""
    snapshots = add_command(
        actions, "snapshots", summary="train members one after the other", description=_DESCRIPTION, epilog=_EPILOG
    )
    add_run_options(snapshots)
    add_recipe_options(snapshots)
    add_number(snapshots, "--cycles", 4, "members")
    add_number(snapshots, "--chain-weight", 0.0, "share of the loss that is the member before's")
    snapshots.add_argument(
        "--start", choices=("previous", "fresh"), default="previous", help="of a cycle's weights (default: %(default)s)"
    )
    add_ensemble_options(snapshots, folder_option="--write")
    add_threads_option(snapshots)
    add_json_option(snapshots)
    snapshots.set_defaults(action=_snapshots)


def _snapshots(args: argparse.Namespace) -> int:
    import torch

    from forerun.pretraining.ensemble import evaluate_ensemble
    from forerun.pretraining.prepared_corpus import open_corpus
    from forerun.pretraining.snapshots import SnapshotConfig, train_snapshots

    torch.set_num_threads(args.threads)
    config = SnapshotConfig(
        cycle=run_config(args), num_cycles=args.cycles, chain_weight=args.chain_weight, start=args.start
    )
    corpus = open_corpus(args.data)
    with progress_bars() as show:
        members = train_snapshots(
            corpus, args.out, config, report=lambda done, total, detail: show("train", done, total, detail)
        )
        result = evaluate_ensemble(
            [member.folder for member in members], corpus, report=lambda done, total: show("measure", done, total, "")
        )
    write_ensemble_result(result, args.write, average=args.average, corpus=corpus, json_file=args.json)
    return 0
