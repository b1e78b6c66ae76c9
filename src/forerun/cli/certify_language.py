"""What ``forerun certify --task bytes`` and ``forerun verify`` of its certificate do and print."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun.cli.console import write_json, write_line
from forerun.cli.options import add_number

if TYPE_CHECKING:
    from forerun.bounds.language.certify import LanguageResult, LevelBound

TASK = "bytes"


def add_language_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``--task bytes``."""
    group = parser.add_argument_group("language models (--task bytes)")
    group.add_argument(
        "--num-bytes",
        type=int,
        metavar="N",
        help="bytes to train on, in whole documents; the rest is held out (default: 8 MB, or two thirds if less)",
    )
    add_number(group, "--fit-bytes", 1_000_000, "bytes of these to fit on; all are scored and certified")
    group.add_argument(
        "--level",
        choices=("token", "document"),
        default="token",
        help="statement to make small; both are made (default: %(default)s)",
    )


def run_language(args: argparse.Namespace) -> int:
    """Certify a language model and print."""
    from forerun.bounds.language.certify import certify_language
    from forerun.bounds.language.task import bytes_task
    from forerun.core.errors import ConfigError
    from forerun.data.corpus import DEFAULT_CORPUS

    if args.report is not None or args.num_train is not None:
        raise ConfigError("--report and --num-train: are for classifiers; leave them out with --task bytes")
    source = DEFAULT_CORPUS if args.data is None else str(args.data)
    task = bytes_task(source, num_bytes=args.num_bytes)
    result = certify_language(
        task, args.out, delta=args.delta, level=args.level, fit_bytes=args.fit_bytes, report=write_line
    )
    for line in language_report(result):
        write_line(line)
    write_line(f"wrote {args.out}; check it with: forerun verify {args.out} --data {source}")
    if args.json is not None:
        write_json(args.json, {"task": TASK, "source": source, "fit_bytes": args.fit_bytes, **result.as_json()})
    return 0


def language_report(result: "LanguageResult") -> list[str]:
    """Return the report: both statements with what they mean, the hold-out, and the ledger."""
    lines = [
        "",
        f"{result.num_bytes} bytes in {result.num_documents} documents; a model of {result.code_length_bits:.1f} bits, "
        f"coded in {result.message_bytes} bytes; both statements hold at once with probability {1 - result.delta:g}",
        "",
        f"token level: {_statement(result.token)}",
        "  If every byte of this text were drawn once more, given the text before it, the mean score would be expected",
        "  to be no more. The draw is that of the text, whatever made it; nothing is said of other documents.",
        "",
        f"document level: {_statement(result.document)}",
        "  So many bits per byte are expected of one more document, if documents are drawn independently from one",
        "  source (or, their number fixed beforehand, as a random part of one collection). The predictor is the even",
        "  mixture of model and uniform bytes.",
    ]
    if result.holdout is not None:
        token, document = result.holdout["token"], result.holdout["document"]
        lines += [
            "",
            f"beside it, from {result.holdout['num_bytes']} bytes in {result.holdout['num_documents']} documents that "
            "were held out (statements of their own, with their own delta):",
            f"  token {token['score']:.4f}, at most {token['bound']:.4f}; "
            f"document {document['score']:.4f}, at most {document['bound']:.4f}",
        ]
    lines += ["", "ledger, in bits"]
    lines += [f"  {line.name:<27}{line.bits:>8.2f}  {line.why}" for line in result.ledger]
    return [*lines, ""]


def _statement(bound: "LevelBound") -> str:
    verdict = "VACUOUS: no better than uniform bytes" if bound.is_vacuous else "not vacuous"
    return f"at most {bound.bound:.4f} bits per byte ({verdict}; uniform 8); measured {bound.score:.4f}"


def is_language_certificate(manifest: dict[str, Any]) -> bool:
    """Return whether a manifest is that of a language certificate."""
    from forerun.bounds.language.verifier import FORMAT

    return manifest.get("format") == FORMAT


def verify_language(certificate: Path, manifest: dict[str, Any], source: str, options: list[str]) -> dict[str, Any]:
    """Have a language certificate verified in a fresh process, and print the verdict.

    Args:
        certificate: The file.
        manifest: Its manifest.
        source: The corpus.
        options: Of the stand-alone verifier.

    Returns:
        The verifier's answer.
    """
    from forerun.bounds.certificate import ask_verifier
    from forerun.bounds.language import verifier
    from forerun.bounds.language.task import training_documents

    answer = ask_verifier(verifier.__file__, certificate, training_documents(source, manifest), options)
    if answer["accepted"]:
        write_line(
            f"yes: at most {answer['token_bound']:.4f} bits per byte at token level, "
            f"{answer['document_bound']:.4f} at document level"
            f"{' (VACUOUS)' if answer['document_is_vacuous'] else ''}; {answer['num_bytes']} bytes in "
            f"{answer['num_documents']} documents, a model of {answer['code_length_bits']:.1f} bits"
        )
    return answer
