"""``forerun pretrain``: prepare a corpus, train models on it; and where its other actions are."""

import argparse
from pathlib import Path

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number, add_threads_option
from forerun.cli.pretrain_distill import add_distill
from forerun.cli.pretrain_ensemble import add_ensemble
from forerun.cli.pretrain_joint import add_joint
from forerun.cli.pretrain_options import (
    add_recipe_options,
    add_run_options,
    run_config,
    use_place_options,
    write_run,
)
from forerun.cli.pretrain_snapshots import add_snapshots
from forerun.cli.pretrain_study import add_report, add_reproduce
from forerun.cli.pretrain_tune import add_tune
from forerun.cli.progress import progress_bars

_DESCRIPTION = """\
Train language models when data, not compute, is the limit: many epochs with strong weight decay, and ensembles.
"""
_EPILOG = """\
examples:
  forerun pretrain prepare default --out data        this machine's Python standard library, about 11 MB
  forerun pretrain prepare my/texts --out data       a folder of your own, a .jsonl or .parquet file
  forerun pretrain train --data data --out runs --seed 0
  forerun pretrain train --data data --out runs --seed 1
  forerun pretrain ensemble runs/* --data data --out pair
  forerun pretrain joint small medium large --data data
  forerun pretrain distill --ensemble pair --data data --out runs --size 75k
  forerun pretrain tune --data data --out runs --size 25k --unique-tokens 50000
  forerun pretrain reproduce --scale smoke --out study    all of it, in minutes, and a page about it
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "pretrain",
        summary="train language models on a limited corpus",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_prepare(actions)
    _add_train(actions)
    add_ensemble(actions)
    add_snapshots(actions)
    add_joint(actions)
    add_distill(actions)
    add_tune(actions)
    add_reproduce(actions)
    add_report(actions)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run one action."""
    if "device" in args:
        use_place_options(args)
    status: int = args.action(args)
    return status


def _add_prepare(actions: Commands) -> None:
    prepare = actions.add_parser(
        "prepare",
        help="clean, split, tokenise and hash a corpus",
        description="Removes near-duplicates, splits by document into train, tune and test, learns a byte-level BPE "
        "tokenizer on train alone, and writes memory-mapped token files with a manifest of documents and hashes.",
    )
    prepare.add_argument(
        "corpus", metavar="CORPUS", help="default, a folder, a text, JSONL or Parquet file, or hf:OWNER/DATASET[@SPLIT]"
    )
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for the result")
    add_number(prepare, "--vocab-size", 1024, "tokens")
    prepare.add_argument("--tokenizer", type=Path, metavar="FILE", help="use this tokenizer.json instead of a new one")
    add_number(prepare, "--tune-fraction", 0.1, "share")
    add_number(prepare, "--test-fraction", 0.1, "share")
    add_number(prepare, "--similarity", 0.8, "drop documents this alike")
    prepare.add_argument(
        "--max-bytes", type=int, metavar="N", help="use only a random sample of about so much text (default: all)"
    )
    prepare.add_argument("--text-field", default="text", metavar="NAME", help="field of records (default: %(default)s)")
    prepare.add_argument("--license", metavar="NAME", help="licence of documents that do not say their own")
    add_number(prepare, "--seed", 0, "root of the split")
    add_json_option(prepare)
    prepare.set_defaults(action=_prepare)


def _add_train(actions: Commands) -> None:
    train = actions.add_parser(
        "train",
        help="train one model",
        description="Trains one decoder. Its folder is named by the hash of all settings and of the data: the same "
        "command goes on where a cut run stopped, and does nothing where it is done.",
    )
    add_run_options(train)
    add_recipe_options(train)
    add_threads_option(train)
    add_json_option(train)
    train.set_defaults(action=_train)


def _prepare(args: argparse.Namespace) -> int:
    from forerun.data.deduplication import DeduplicationConfig
    from forerun.data.split import SplitConfig
    from forerun.pretraining.prepare import PrepareConfig, prepare_corpus

    config = PrepareConfig(
        deduplication=DeduplicationConfig(threshold=args.similarity),
        split=SplitConfig(tune_fraction=args.tune_fraction, test_fraction=args.test_fraction, seed=args.seed),
        vocab_size=args.vocab_size,
        tokenizer=args.tokenizer,
        text_field=args.text_field,
        most_bytes=args.max_bytes,
        license_name=args.license,
    )
    with progress_bars() as show:
        manifest = prepare_corpus(
            args.corpus, args.out, config, report=lambda stage, done, total: show(stage, done, total, "")
        )
    write_line(f"left out {len(manifest.duplicates)} near-duplicates; {manifest.vocab_size} tokens in the vocabulary")
    for split, record in manifest.splits.items():
        write_line(
            f"{split:<6} {len(record.documents):>8,} documents {record.num_bytes:>14,} bytes "
            f"{record.tokens.num_tokens:>14,} tokens"
        )
    write_line(f"wrote {args.out}  (SHA-256 {manifest.data_sha256})")
    if args.json is not None:
        write_json(args.json, manifest.to_json())
    return 0


def _train(args: argparse.Namespace) -> int:
    import torch

    from forerun.pretraining.prepared_corpus import open_corpus
    from forerun.pretraining.train import pretrain
    from forerun.training.devices import is_first_process

    torch.set_num_threads(args.threads)
    config = run_config(args)
    corpus = open_corpus(args.data)
    with progress_bars() as show:
        finished = pretrain(
            corpus, args.out, config, report=lambda done, total, detail: show("train", done, total, detail)
        )
    if is_first_process():
        write_run(finished, args.json)
    return 0
