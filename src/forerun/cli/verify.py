"""``forerun verify``: decode a certificate, recompute its bound, and say yes or no."""

import argparse
from pathlib import Path
from typing import Any

from forerun.cli.certify_decoder import is_decoder_certificate, verify_decoder
from forerun.cli.certify_language import is_language_certificate, verify_language
from forerun.cli.certify_module import MODULE_OPTION, is_module_certificate, verifier_options
from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, input_file

_DESCRIPTION = """\
Check a certificate against its training data, in a fresh process that runs one short program needing only numpy:
decode the weights, count the errors, add up the bits, recompute the bound, compare. The certificate of a module
needs PyTorch and that module, whose code is run. Exit status: 0 yes, 1 no.
"""
_EPILOG = """\
examples:
  forerun verify CERTIFICATE.zip --data digits
  forerun verify CERTIFICATE.zip --data mine.npz --grid-sha256 HEX
  forerun verify CERTIFICATE.zip --data mine.npz --module nets:build
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's options."""
    parser = add_command(commands, "verify", summary="check a certificate", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("certificate", type=input_file, metavar="CERTIFICATE", help="what forerun certify wrote")
    parser.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="digits, mnist1d, default (of --task bytes), or the file or folder that was given to forerun certify",
    )
    parser.add_argument(
        "--grid-sha256", metavar="HEX", help="digest of the grid fixed beforehand; needed for grids of your own"
    )
    parser.add_argument(
        MODULE_OPTION, metavar="PACKAGE.MODULE:FACTORY", help="for the certificate of a module: its factory"
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="PATH",
        help="frozen base: the run under an adapter, or a module's safetensors file",
    )
    add_json_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Verify and print."""
    from forerun.bounds.certificate import read_manifest

    options = [] if args.grid_sha256 is None else [f"--grid-sha256={args.grid_sha256}"]
    manifest = read_manifest(args.certificate)
    if is_decoder_certificate(manifest):
        answer = verify_decoder(args, manifest, options)
    elif is_language_certificate(manifest):
        answer = verify_language(args.certificate, manifest, args.data, options)
    else:
        answer = _verify_classifier(args, manifest, options)
    if not answer["accepted"]:
        write_line(f"no: {answer['reason']}")
    if args.json is not None:
        write_json(args.json, answer)
    return 0 if answer["accepted"] else 1


def _verify_classifier(args: argparse.Namespace, manifest: dict[str, Any], options: list[str]) -> dict[str, Any]:
    from forerun.bounds import verifier
    from forerun.bounds.certificate import ask_verifier
    from forerun.bounds.task import training_data
    from forerun.core.errors import ConfigError

    program = verifier.__file__
    if is_module_certificate(manifest):
        program, options = verifier_options(args, options)
    elif args.module is not None:
        raise ConfigError(f"{args.certificate}: is no certificate of a module; leave {MODULE_OPTION} out")
    answer = ask_verifier(program, args.certificate, training_data(args.data, manifest), ["--json", *options])
    if answer["accepted"]:
        vacuous = "VACUOUS: no better than chance" if answer["is_vacuous"] else "not vacuous"
        write_line(
            f"yes: error at most {answer['risk_bound']:.2%} ({vacuous}), from {answer['num_errors']} errors in "
            f"{answer['num_samples']} examples and {answer['code_length_bits']:.1f} bits"
        )
    return answer
