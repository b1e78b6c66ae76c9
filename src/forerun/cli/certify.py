"""``forerun certify``: train a classifier that compresses, and bound its error with a file that others can check."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from forerun.cli.certify_decoder import add_decoder_options, run_decoders
from forerun.cli.certify_language import TASK as LANGUAGE_TASK
from forerun.cli.certify_language import add_language_options, run_language
from forerun.cli.certify_module import add_module_options, certify_named_module, check_no_module_options
from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number, add_threads_option, output_file

if TYPE_CHECKING:
    from forerun.bounds.result import Certified, CertifyResult
    from forerun.bounds.task import Task

_DESCRIPTION = """\
Train a classifier in a random subspace, quantise and code it, decode the bytes in a fresh process, count its errors on
the training data, and print an upper bound on its error that holds with probability 1 - delta over the draw of the
data. Every choice that the decoder needs is paid for; the ledger lists it. Writes a certificate for `forerun verify`.

The examples must be independent draws: one row per unit, none twice, not stratified by class.

With --module: a torch.nn.Module of yours, trained in a random subspace; verifying it runs its code.
With --task bytes: a byte-level language model, and upper bounds on its bits per byte. With --model: models that
`forerun pretrain` made, rounded to few bits; of several the one with the least bound.
"""
_EPILOG = """\
examples:
  forerun certify --task digits
  forerun certify --task mnist1d
  forerun certify --task fashion-mnist --data DIR --report certificate.html
  forerun certify --task bytes                        # this machine's Python standard library
  forerun certify --task bytes --data DIR --level document
  forerun certify --model RUN ENSEMBLE STUDENT --data CORPUS
  forerun certify --data mine.npz --input-scale 0.00392156862745098 --out mine.zip
  forerun certify --data mine.npz --agreement-with predictions.npz
  forerun certify --data mine.parquet --module nets:build      # build() in nets.py, in this folder
  forerun certify --data digits --input-shape 1 8 8 --module forerun.bounds.module.digits_network:build
  forerun verify CERTIFICATE.zip --data digits
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's options."""
    parser = add_command(
        commands,
        "certify",
        summary="train a classifier with a checkable bound on its error",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--task",
        choices=("digits", "mnist1d", "fashion-mnist", LANGUAGE_TASK),
        help="a task that Forerun knows; fashion-mnist needs --data DIR with its four IDX files",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help=".npz with inputs [n, ...] and labels [n] from 0 on, .csv or .parquet with a column label, or a folder of "
        "IDX files; with --module also digits or mnist1d; for --task bytes a folder or file of text (default: this "
        "machine's Python standard library)",
    )
    parser.add_argument(
        "--out",
        type=output_file,
        default=Path("CERTIFICATE.zip"),
        metavar="FILE",
        help="certificate to write (default: %(default)s)",
    )
    add_number(parser, "--delta", 0.05, "probability that the bound fails")
    parser.add_argument(
        "--num-train",
        type=int,
        metavar="N",
        help="examples to train on; the rest is held out (default: 5/6, or the task's number)",
    )
    add_number(
        parser, "--input-scale", 1.0, "with --data: fixed factor of the inputs, chosen without looking at the data"
    )
    add_threads_option(parser)
    add_module_options(parser)
    add_language_options(parser)
    add_decoder_options(parser)
    parser.add_argument(
        "--agreement-with",
        type=Path,
        metavar="PATH",
        help="also bound the error of a model of yours by how often it agrees with the certified one: a file as for "
        "--data, of examples that neither was trained on, with the model's predictions in place of labels",
    )
    parser.add_argument(
        "--report", type=output_file, metavar="FILE", help="also write a page with the ledger's picture"
    )
    add_json_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Certify and print."""
    if args.module is None:
        check_no_module_options(args)
    if args.model is not None and args.module is None:
        return run_decoders(args)
    if args.task == LANGUAGE_TASK and args.module is None:
        return run_language(args)
    import torch

    from forerun.bounds.agreement import bound_by_agreement
    from forerun.bounds.report import write_report
    from forerun.data.labelled_files import load_labelled

    torch.set_num_threads(args.threads)
    predicted = None if args.agreement_with is None else load_labelled(args.agreement_with)[0]
    made = _certify_task(args) if args.module is None else certify_named_module(args)
    result = made.result
    for line in report_lines(result):
        write_line(line)
    write_line(f"wrote {args.out}; check it with: forerun verify {args.out} {made.verify_options}")
    if args.report is not None:
        write_report(args.report, made.name, result)
    agreement = None
    if predicted is not None:
        agreement = bound_by_agreement(
            args.out,
            made.train,
            predicted,
            certified_bound=result.risk_bound,
            delta=args.delta,
            errors_of=made.errors_of,
        )
        write_line(
            f"the other model errs at most {agreement.risk_bound:.2%} with probability "
            f"{1 - agreement.failure_probability:g}: {agreement.certified_bound:.2%}, and "
            f"{agreement.disagreement_bound:.2%} for {agreement.num_disagreements} disagreements in "
            f"{agreement.num_unlabelled} examples"
        )
    if args.json is not None:
        write_json(args.json, result.as_json() | ({} if agreement is None else {"agreement": agreement.as_json()}))
    return 0


def _certify_task(args: argparse.Namespace) -> "Certified":
    from forerun.bounds import verifier
    from forerun.bounds.certify import certify, default_candidates
    from forerun.bounds.result import Certified

    task = _open_task(args)
    result = certify(task, args.out, delta=args.delta, candidates=default_candidates(task.name), report=write_line)
    return Certified(
        name=task.name,
        result=result,
        train=task.train,
        errors_of=verifier.CLASSIFIER[2],
        verify_options=f"--data {args.data or args.task}",
    )


def _open_task(args: argparse.Namespace) -> "Task":
    from forerun.bounds.task import arrays_task, digits_task, fashion_task, mnist1d_task
    from forerun.core.errors import ConfigError

    if (args.data is None) == (args.task in {None, "fashion-mnist"}):
        raise ConfigError(
            f"--task {args.task}, --data {args.data}: give --task digits or mnist1d alone, --task fashion-mnist with "
            "--data DIR, or --data PATH alone for data of your own"
        )
    if args.task == "digits":
        return digits_task(args.num_train)
    if args.task == "mnist1d":
        return mnist1d_task(args.num_train)
    if args.task == "fashion-mnist":
        return fashion_task(args.data, args.num_train)
    return arrays_task(args.data, input_scale=args.input_scale, num_train=args.num_train)


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
