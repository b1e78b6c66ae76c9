"""``forerun bounds``: the phenomena that certificates explain, and the effective dimensionality of a model."""

import argparse
from pathlib import Path

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number, add_threads_option

_DESCRIPTION = """\
reproduce  measure and draw: benign overfitting with the evidence of a Gaussian process; double descent with effective
           dimensionality and certified bounds; soft against hard inductive biases; compressibility by width
neff       effective dimensionality of a small network's Hessian, by stochastic Lanczos quadrature in float64
"""
_EPILOG = """\
examples:
  forerun bounds reproduce --out figures
  forerun bounds reproduce --only soft_bias --out figures
  forerun bounds neff --width 16 --z 1 --convention mean
"""
_NAMES = ("benign_overfitting", "double_descent", "soft_bias", "compressibility")


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's options."""
    parser = add_command(
        commands,
        "bounds",
        summary="phenomena that compression explains; effective dimensionality",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    reproduce = actions.add_parser("reproduce", help="measure the phenomena, write JSON and PNG (five minutes)")
    reproduce.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    reproduce.add_argument("--only", choices=_NAMES, action="append", help="one of them; may be given several times")
    reproduce.set_defaults(action=_reproduce)
    neff = actions.add_parser("neff", help="effective dimensionality of a network trained on the digits")
    add_number(neff, "--width", 16, "hidden units")
    add_number(neff, "--z", 1.0, "scale")
    neff.add_argument(
        "--convention", choices=("mean", "sum"), default="mean", help="of the loss over examples (default: %(default)s)"
    )
    add_number(neff, "--probes", 10, "random vectors")
    add_number(neff, "--steps", 60, "Lanczos steps")
    neff.add_argument("--exact", action="store_true", help="also from all eigenvalues; up to 5,000 parameters")
    add_json_option(neff)
    neff.set_defaults(action=_neff)
    add_threads_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run one action."""
    import torch

    torch.set_num_threads(args.threads)
    status: int = args.action(args)
    return status


def _reproduce(args: argparse.Namespace) -> int:
    from forerun.bounds.phenomena.reproduce import reproduce

    reproduce(args.out, tuple(dict.fromkeys(args.only or _NAMES)), write_line)
    return 0


def _neff(args: argparse.Namespace) -> int:
    from forerun.bounds.digits_curvature import measure_digits_curvature

    found = measure_digits_curvature(
        width=args.width, z=args.z, convention=args.convention, num_probes=args.probes, num_steps=args.steps,
        exact=args.exact,
    )  # fmt: skip
    write_line(
        f"N_eff = {found['value']:.3f} (95% interval over {found['num_probes']} vectors {found['low']:.3f} to "
        f"{found['high']:.3f}) of {found['num_parameters']} parameters"
    )
    write_line(
        f"convention: Hessian of the {args.convention} loss over {found['num_samples']} examples, z = {args.z:g}"
    )
    write_line(f"the other convention, same z: {found['other_convention']['value']:.3f}")
    if found["exact"] is not None:
        write_line(
            f"from all eigenvalues: {found['exact']:.3f} ({found['num_negative']} of them negative, counted as 0)"
        )
    if args.json is not None:
        write_json(args.json, found)
    return 0
