"""What ``forerun certify --model`` and ``forerun verify`` of its certificate do and print."""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun.cli.console import write_json, write_line
from forerun.cli.options import add_number

if TYPE_CHECKING:
    from forerun.bounds.language.decoder_certify import TokenText


def add_decoder_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``--model``."""
    group = parser.add_argument_group("trained language models (--model, with --data CORPUS of 'forerun pretrain')")
    group.add_argument(
        "--model",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="runs or ensembles of 'forerun pretrain'; the one with the least bound is certified",
    )
    group.add_argument("--num-tokens", type=int, metavar="N", help="training tokens, from the start (default: all)")
    add_number(group, "--window", 128, "tokens predicted in one window")
    add_number(group, "--step-share", 1.2, "step of a tensor over its root mean square: more is fewer bits")
    add_number(group, "--fit-steps", 400, "optimiser steps with the rounding in place, for each member")
    add_number(group, "--rank", 0, "certify an adapter of this rank upon the model as frozen base; 0: the model itself")
    group.add_argument(
        "--base-is-independent", action="store_true", help="with --rank: the base was made without this text"
    )


def run_decoders(args: argparse.Namespace) -> int:
    """Certify trained decoders and print."""
    import torch

    from forerun.bounds.language.decoder_certify import DecoderOptions, certify_decoders, open_candidate
    from forerun.bounds.language.decoder_fit import DecoderFitConfig
    from forerun.core.errors import ConfigError

    if args.task is not None or args.data is None or args.report is not None or args.num_train is not None:
        raise ConfigError(
            "--model: needs --data CORPUS, the folder 'forerun pretrain prepare' wrote; --task, --report and "
            "--num-train are for classifiers"
        )
    torch.set_num_threads(args.threads)
    options = DecoderOptions(
        delta=args.delta,
        window=args.window,
        rank=args.rank,
        base_is_independent=args.base_is_independent,
        fit=DecoderFitConfig(step_share=args.step_share, num_steps=args.fit_steps),
    )
    candidates = [open_candidate(path) for path in args.model]
    result = certify_decoders(
        candidates, _training_text(args.data, args.num_tokens), args.out, options, report=write_line
    )
    found = next(item for item in result["candidates"] if item["name"] == result["chosen"])
    for line in _report(found, delta=args.delta, num_candidates=len(candidates)):
        write_line(line)
    base = f" --base {args.model[0]}" if args.rank else ""
    write_line(f"wrote {args.out}; check it with: forerun verify {args.out} --data {args.data}{base}")
    if args.json is not None:
        write_json(args.json, result)
    return 0


def _report(found: dict[str, Any], *, delta: float, num_candidates: int) -> list[str]:
    verdict = "VACUOUS: no better than uniform tokens" if found["is_vacuous"] else "not vacuous"
    return [
        "",
        f"{found['name']}, the least bound of {num_candidates}; choosing is free, as all messages share one prior",
        f"token level: at most {found['token_bound']:.4f} bits per token, {found['bits_per_byte_bound']:.4f} per byte "
        f"({verdict}), with probability {1 - delta:g}; measured {found['token_score']:.4f} and "
        f"{found['bits_per_byte']:.4f}",
        "  If every token of this text were drawn once more, given the text before it, the mean score would be",
        "  expected to be no more. Nothing is said of other documents: they are too few for so long a message.",
        "",
        f"ledger, in bits ({found['code_length_bits']:.0f} in all)",
        *(f"  {name:<27}{bits:>10.1f}" for name, bits in found["ledger_bits"].items()),
        "",
    ]


def is_decoder_certificate(manifest: dict[str, Any]) -> bool:
    """Return whether a manifest is that of a decoder's certificate."""
    from forerun.bounds.language.decoder_verifier import FORMAT

    return manifest.get("format") == FORMAT


def verify_decoder(args: argparse.Namespace, manifest: dict[str, Any], options: list[str]) -> dict[str, Any]:
    """Have the certificate of a decoder verified in a fresh process, and print the verdict.

    Args:
        args: Of ``forerun verify``.
        manifest: The certificate's; only its number of tokens is used.
        options: Of the stand-alone verifier.

    Returns:
        The verifier's answer.
    """
    from forerun.bounds.certificate import ask_verifier
    from forerun.bounds.language import decoder_verifier
    from forerun.bounds.language.decoder_certify import open_candidate, save_base

    with tempfile.TemporaryDirectory() as folder:
        if args.base is not None:
            save_base(Path(folder) / "base.npz", open_candidate(args.base).decoders[0])
            options = [*options, f"--base={folder}/base.npz"]
        claims = manifest.get("claims")
        num_tokens = claims.get("num_tokens") if isinstance(claims, dict) else None
        text = _training_text(Path(args.data), num_tokens + 1 if isinstance(num_tokens, int) else None)
        answer = ask_verifier(decoder_verifier.__file__, args.certificate, text, options)
    if answer["accepted"]:
        write_line(
            f"yes: at most {answer['token_bound']:.4f} bits per token, {answer['bits_per_byte_bound']:.4f} per byte"
            f"{' (VACUOUS)' if answer['is_vacuous'] else ''}; {answer['num_tokens']} tokens, "
            f"a model of {answer['code_length_bits']:.0f} bits"
        )
    return answer


def _training_text(folder: Path, num_tokens: int | None) -> "TokenText":
    """Return the first tokens of a prepared corpus, or all of them."""
    import numpy as np

    from forerun.bounds.language.decoder_certify import TokenText
    from forerun.core.errors import ConfigError
    from forerun.pretraining.prepared_corpus import open_corpus

    corpus = open_corpus(folder)
    ids = np.asarray(corpus.train.ids, np.int64)
    if num_tokens is not None and not 2 <= num_tokens <= len(ids):
        raise ConfigError(f"num_tokens={num_tokens}: must be 2 to {len(ids)}, the training tokens of {folder}")
    ids = ids[:num_tokens]
    return TokenText(ids=ids, num_bytes=len(corpus.tokenizer.decode(ids.tolist()).encode()))
