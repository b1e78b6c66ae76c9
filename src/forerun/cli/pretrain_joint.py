"""``forerun pretrain joint``: members without number, then parameters without end, from ensembles that exist."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number, add_threads_option
from forerun.cli.pretrain_options import add_data_option
from forerun.cli.progress import progress_bars

if TYPE_CHECKING:
    from forerun.pretraining.laws import Interval

_DESCRIPTION = """\
Takes ensembles of several sizes to their joint limit: for each size the limit in the number of members, then over sizes
the limit in the number of parameters. Everything is measured on the tune split. Intervals are over documents and
members, through both limits. Where the ensembles do not say what the limit is, that is said.
"""
_EPILOG = """\
examples:
  forerun pretrain ensemble runs/A runs/B runs/C --data data --out small
  forerun pretrain ensemble runs/D runs/E runs/F --data data --out large
  forerun pretrain joint small large --data data         limits in members; two sizes are no law in size
  forerun pretrain joint 25k 75k 150k 440k --data data --json joint.json
"""


def add_joint(actions: Commands) -> None:
    """Add the action."""
    joint = add_command(
        actions, "joint", summary="the limit in members and in size", description=_DESCRIPTION, epilog=_EPILOG
    )
    joint.add_argument(
        "ensembles",
        nargs="+",
        type=Path,
        metavar="ENSEMBLE",
        help="what 'forerun pretrain ensemble --out' wrote, one for each size",
    )
    add_data_option(joint)
    add_number(joint, "--replicates", 1000, "replicates behind an interval")
    add_threads_option(joint)
    add_json_option(joint)
    joint.set_defaults(action=_joint)


def _joint(args: argparse.Namespace) -> int:
    import torch

    from forerun.pretraining.ensemble import read_ensemble
    from forerun.pretraining.joint import joint_json, joint_limit
    from forerun.pretraining.prepared_corpus import open_corpus

    torch.set_num_threads(args.threads)
    ensembles = [read_ensemble(folder).members for folder in args.ensembles]
    with progress_bars() as show:
        result = joint_limit(
            ensembles,
            open_corpus(args.data),
            num_replicates=args.replicates,
            report=lambda done, total: show("measure", done, total, ""),
        )
    write_line(f"tune loss, nats a token, {result.num_documents} documents, {result.num_tokens:,} tokens")
    write_line(f"{'parameters':>10}  {'members':>7}  {'one':>25}  {'all':>25}  {'limit in members':>25}")
    for item in result.ensembles:
        cells = "  ".join(f"{_text(interval):>25}" for interval in (item.curve[0], item.curve[-1], item.limit))
        write_line(f"{item.num_params['without_embeddings']:>10,}  {len(item.members):>7}  {cells}")
    for count, law in result.laws.items():
        limit = ""
        if law.fit is not None and law.limit is not None:
            limit = f"{_text(law.limit)}, exponent {law.fit.exponent:.2f}: "
        standing = "identified" if law.is_identified else f"not identified: {'; '.join(law.problems)}"
        write_line(f"joint limit, parameters {count.replace('_', ' ')}: {limit}{standing}")
        if law.largest_error is not None:
            write_line(f"  largest size predicted from the others, less what was seen: {_text(law.largest_error)}")
    if args.json is not None:
        write_json(args.json, joint_json(result))
    return 0


def _text(interval: "Interval") -> str:
    return f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"
