"""``forerun verify``: decode a certificate, recompute its bound, and say yes or no."""

import argparse
from pathlib import Path
from typing import Any

from forerun.cli.certify_decoder import is_decoder_certificate, verify_decoder
from forerun.cli.certify_language import is_language_certificate, verify_language
from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_json_option, input_file

_DESCRIPTION = """\
Check a certificate against its training data, in a fresh process that runs one short program needing only numpy:
decode the weights, count the errors, add up the bits, recompute the bound, compare. Exit status: 0 yes, 1 no.
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's options."""
    parser = commands.add_parser("verify", help="check a certificate", description=_DESCRIPTION)
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
    parser.add_argument("--base", type=Path, metavar="RUN", help="frozen base, for the certificate of an adapter")
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
    from forerun.bounds.certificate import run_verifier
    from forerun.bounds.task import SOURCES, training_data
    from forerun.core.errors import ConfigError

    if args.data not in SOURCES and not Path(args.data).exists():
        raise ConfigError(f"--data {args.data}: no such file; give {', '.join(SOURCES)}, or a file or folder of data")
    answer = run_verifier(args.certificate, training_data(args.data, manifest), options)
    if answer["accepted"]:
        vacuous = "VACUOUS: no better than chance" if answer["is_vacuous"] else "not vacuous"
        write_line(
            f"yes: error at most {answer['risk_bound']:.2%} ({vacuous}), from {answer['num_errors']} errors in "
            f"{answer['num_samples']} examples and {answer['code_length_bits']:.1f} bits"
        )
    return answer
