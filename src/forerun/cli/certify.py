"""``forerun certify``: train a classifier that compresses, and bound its error with a file that others can check."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_json_option, input_file, output_file

if TYPE_CHECKING:
    from forerun.bounds.certify import CertifyResult

_DESCRIPTION = """\
Train a classifier in a random subspace, quantise and code it, decode the bytes in a fresh process, count its errors on
the training data, and print an upper bound on its error that holds with probability 1 - delta over the draw of the
data. Every choice that the decoder needs is paid for; the ledger lists it. Writes a certificate for `forerun verify`.

The examples must be independent draws: one row per unit, none twice, not stratified by class.
"""
_EPILOG = """\
examples:
  forerun certify --task digits
  forerun certify --data mine.npz --input-scale 0.00392156862745098 --out mine.zip
  forerun verify CERTIFICATE.zip --data digits
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's options."""
    parser = commands.add_parser(
        "certify",
        help="train a classifier with a checkable bound on its error",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--task", choices=("digits",), help="a task that comes with Forerun")
    source.add_argument(
        "--data", type=input_file, metavar="FILE", help=".npz with inputs [n, ...] and labels [n] from 0 on"
    )
    parser.add_argument(
        "--out",
        type=output_file,
        default=Path("CERTIFICATE.zip"),
        metavar="FILE",
        help="certificate to write (default: %(default)s)",
    )
    parser.add_argument(
        "--delta", type=float, default=0.05, metavar="X", help="probability that the bound fails (default: %(default)s)"
    )
    parser.add_argument(
        "--num-train", type=int, metavar="N", help="examples to train on; the rest is held out (digits: 1500)"
    )
    parser.add_argument(
        "--input-scale",
        type=float,
        default=1.0,
        metavar="X",
        help="with --data: fixed factor of the inputs, chosen without looking at the data (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    add_json_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Certify and print."""
    import torch

    from forerun.bounds.certify import certify
    from forerun.bounds.task import arrays_task, digits_task

    torch.set_num_threads(args.threads)
    if args.data is None:
        task = digits_task(args.num_train)
    else:
        task = arrays_task(args.data, input_scale=args.input_scale, num_train=args.num_train)
    result = certify(task, args.out, delta=args.delta, report=write_line)
    for line in report_lines(result):
        write_line(line)
    write_line(f"wrote {args.out}; check it with: forerun verify {args.out} --data {args.data or 'digits'}")
    if args.json is not None:
        write_json(args.json, result.as_json())
    return 0


def report_lines(result: "CertifyResult") -> list[str]:
    """Return the report: the bound, its neighbours, and the ledger."""
    verdict = "VACUOUS: no better than chance" if result.is_vacuous else "not vacuous"
    bounds = result.bounds
    lines = [
        "",
        f"error at most {result.risk_bound:.2%} with probability {1 - result.delta:g} "
        f"({verdict}; chance {result.chance:.0%})",
        f"  training error {result.empirical_risk:.2%} ({result.num_errors} of {result.num_samples}), "
        f"{result.code_length_bits:.1f} bits, coded in {result.message_bytes} bytes",
        f"  binomial tail {bounds.binomial:.4f}   kl {bounds.kl:.4f}   Catoni {bounds.catoni:.4f}   "
        f"McAllester {bounds.mcallester:.4f}",
    ]
    if result.holdout is not None:
        lines.append(
            f"  beside it, from {result.holdout['num_samples']} held-out examples: error "
            f"{result.holdout['empirical_risk']:.2%}, at most {result.holdout['risk_bound']:.2%} "
            "(a statement of its own, with its own delta)"
        )
    lines += ["", "ledger, in bits"]
    lines += [f"  {line.name:<27}{line.bits:>8.2f}  {line.why}" for line in result.ledger]
    return [*lines, ""]
