"""``forerun train-draft``: distil a small draft from a target's own text."""

import argparse
from pathlib import Path

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number, add_threads_option
from forerun.cli.progress import progress_bars

_DESCRIPTION = """\
Distil a small draft from a target, with nothing but the target: it writes prompts and answers at several temperatures,
and the draft, which starts as a few of the target's layers, learns to predict them. It learns to read the target's own
keys and values in those layers for all text that the target has read, and needs no pass over a prompt then. It borrows
the target's embedding, so it is small on disk; it may propose only the commonest tokens, but the target's output stays
exact.

With --kind eagle3 the draft is an EAGLE-3 head instead: one layer that reads the target's hidden states of three of its
layers. It is written in the published format, which other engines read too.

Run the same command again to resume: sampled shards and training checkpoints are kept below OUT/work.
"""
_EPILOG = """\
examples:
  forerun train-draft --out draft --init-from default    the shipped draft's recipe, for the embedded target
  forerun train-draft --target my.gguf --out my-draft    a draft for a model of your own
  forerun generate --target my.gguf --draft my-draft "Hello"
  forerun train-draft --kind eagle3 --out head           an EAGLE-3 head
  forerun train-draft --out draft --sample-worker 1/2    only sample, as the second of two processes
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's options."""
    parser = add_command(
        commands,
        "train-draft",
        summary="distil a small draft from a target's own text",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("--target", default="default", help="model to draft for (default: the embedded SmolLM2-135M)")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory for the draft and for the work"
    )
    parser.add_argument(
        "--kind",
        choices=("layers", "eagle3"),
        default="layers",
        help="a draft made of layers of the target (default), or an EAGLE-3 head",
    )
    add_number(parser, "--num-shards", 25, "shards of about 25,000 tokens to sample; the last is held out")
    add_number(parser, "--num-steps", 2000, "optimiser steps")
    add_number(parser, "--batch-tokens", 1024, "tokens per step")
    parser.add_argument(
        "--layers",
        metavar="I,J,...",
        help="target layers the draft starts from, and whose keys and values it reads (default: four, evenly spaced); "
        "of an EAGLE-3 head those whose inputs it reads (default: the usual three)",
    )
    parser.add_argument(
        "--init-from",
        metavar="DRAFT",
        help="start from a draft of the same layers: a directory, or default (the shipped one)",
    )
    add_number(parser, "--vocab-size", 8192, "tokens the draft can propose")
    add_number(parser, "--learning-rate", 1e-3, "peak learning rate")
    add_number(parser, "--seed", 0, "root of all choices")
    add_threads_option(parser)
    parser.add_argument(
        "--sample-worker", metavar="I/N", help="only sample every N-th shard from the I-th on, then end"
    )
    add_json_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Train, with progress on the terminal."""
    import torch

    from forerun.models.load import load_checkpoint
    from forerun.training.distillation.corpus import CorpusConfig
    from forerun.training.distillation.train import DraftTrainingConfig, sample_corpus, train_draft

    torch.set_num_threads(args.threads)
    config = DraftTrainingConfig(
        kind=args.kind,
        corpus=CorpusConfig(seed=args.seed),
        num_shards=args.num_shards,
        layer_ids=_layers(args.layers),
        init_from=args.init_from,
        vocab_size=args.vocab_size,
        num_steps=args.num_steps,
        batch_tokens=args.batch_tokens,
        learning_rate=args.learning_rate,
    )
    checkpoint = load_checkpoint(args.target)
    with progress_bars() as report:
        if args.sample_worker is not None:
            worker, num_workers = _worker(args.sample_worker)
            sample_corpus(
                checkpoint, args.out / "work" / "corpus", config, report=report, worker=worker, num_workers=num_workers
            )
            return 0
        manifest = train_draft(checkpoint, args.out, config, report=report)
    agreement = manifest["held_out_greedy_agreement"]
    write_line(f"wrote {args.out}: greedy agreement with the target on held-out text {agreement:.1%}")
    if args.json is not None:
        write_json(args.json, manifest)
    return 0


def _layers(text: str | None) -> tuple[int, ...] | None:
    from forerun.core.errors import ConfigError

    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--layers={text}: give layer numbers parted by commas, such as 0,1,2,29") from error


def _worker(text: str) -> tuple[int, int]:
    from forerun.core.errors import ConfigError

    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise ConfigError(f"--sample-worker={text}: give I/N with 1 <= I <= N, such as 1/2")
    return int(index) - 1, int(count)
