"""Options that the actions of ``forerun pretrain`` share, and how they print a run."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from forerun.cli.console import write_json, write_line
from forerun.cli.options import add_number, add_tracker_options, use_tracker_options
from forerun.core.errors import ConfigError
from forerun.pretraining.config import SHAPES, WEIGHT_DECAY, PretrainConfig

if TYPE_CHECKING:
    from forerun.pretraining.executor import Executor
    from forerun.pretraining.run_store import Run


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--data DIR``."""
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="a corpus from 'forerun pretrain prepare'"
    )


def add_executor_options(parser: argparse.ArgumentParser) -> None:
    """Add where runs are made, for commands that make many; :func:`open_executor` reads it."""
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes, one thread each (default: one for each core)"
    )
    parser.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="where runs are made: processes of this machine, or Ray (default: %(default)s)",
    )
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        help="of a Ray cluster that shares the folders, such as auto (default: start Ray on this machine)",
    )
    add_number(parser, "--gpus-per-run", 0.0, "share of a GPU that Ray gives a run")


def open_executor(args: argparse.Namespace) -> "Executor":
    """Return what makes the runs of a command.

    Args:
        args: With the options of :func:`add_executor_options`.

    Raises:
        ConfigError: An option is out of range, or is Ray's where Ray is not asked for.
    """
    if args.executor == "ray":
        from forerun.pretraining.ray_executor import RayExecutor

        return RayExecutor(address=args.address, num_workers=args.workers, gpus_per_run=args.gpus_per_run)
    if args.address is not None or args.gpus_per_run > 0:
        raise ConfigError("--address and --gpus-per-run are for --executor ray; add that, or leave them out")
    from forerun.pretraining.executor import LocalExecutor

    return LocalExecutor(args.workers)


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """Add where runs compute and who is told of them; :func:`use_place_options` heeds it."""
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        help="where to train (default: a GPU where there is one, else the CPU)",
    )
    add_tracker_options(parser)


def use_place_options(args: argparse.Namespace) -> None:
    """Set what :func:`add_place_options` read, for this process and those it starts."""
    from forerun.training.devices import DEVICE_VARIABLE

    if args.device is not None:
        os.environ[DEVICE_VARIABLE] = args.device
    use_tracker_options(args)


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--recipe`` and ``--weight-decay``."""
    parser.add_argument(
        "--recipe",
        choices=("standard", "regularised"),
        default="regularised",
        help="weight decay 0.1, or 1.6 for many epochs (default: %(default)s)",
    )
    parser.add_argument("--weight-decay", type=float, metavar="X", help="another weight decay than the recipe's")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what describes a run but for its recipe; :func:`run_config` reads them."""
    add_data_option(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="RUNS", help="folder of all runs")
    parser.add_argument(
        "--size",
        "--shape",
        choices=tuple(SHAPES),
        default="150k",
        help="parameters without embeddings (default: %(default)s)",
    )
    add_number(parser, "--learning-rate", 6e-3, "peak")
    add_number(parser, "--epochs", 8, "passes")
    parser.add_argument(
        "--unique-tokens", type=int, metavar="N", help="use only so many training tokens (default: all)"
    )
    add_number(parser, "--sequence-tokens", 128, "tokens of a sequence")
    add_number(parser, "--batch-sequences", 8, "sequences of a step")
    add_number(parser, "--tune-tokens", 65_536, "held-out tokens to measure on, the openings of documents")
    add_number(parser, "--tune-every", 1, "epochs between measurements; there is one at the end")
    parser.add_argument(
        "--optimizer",
        choices=("adamw", "muon"),
        default="adamw",
        help="AdamW, or Muon for the matrices inside the layers (default: %(default)s)",
    )
    parser.add_argument(
        "--schedule",
        choices=("cosine", "wsd"),
        default="cosine",
        help="of the learning rate: a cosine, or the peak until a linear fall (default: %(default)s)",
    )
    add_number(parser, "--decay-fraction", 0.2, "share of a wsd's fall")
    add_number(parser, "--dropout", 0.0, "share left out of each update")
    parser.add_argument(
        "--average-decay",
        type=float,
        default=0.0,
        metavar="X",
        help="keep an exponential average of the weights, and measure and write it (default: %(default)s, none)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the arithmetic; weights and moments stay float32 (default: %(default)s)",
    )
    parser.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="compute a layer's inner values again for the gradient: less memory, a third more work",
    )
    add_number(parser, "--seed", 0, "root of weights and order")
    add_place_options(parser)


def run_config(args: argparse.Namespace) -> PretrainConfig:
    """Return the run that the options describe.

    Args:
        args: With the options of :func:`add_run_options` and :func:`add_recipe_options`.

    Raises:
        ConfigError: An option is out of range.
    """
    return PretrainConfig(
        shape=SHAPES[args.size],
        unique_tokens=args.unique_tokens,
        num_epochs=args.epochs,
        sequence_tokens=args.sequence_tokens,
        batch_sequences=args.batch_sequences,
        learning_rate=args.learning_rate,
        weight_decay=WEIGHT_DECAY[args.recipe] if args.weight_decay is None else args.weight_decay,
        tune_tokens=args.tune_tokens,
        tune_every_epochs=args.tune_every,
        optimizer=args.optimizer,
        schedule=args.schedule,
        decay_fraction=args.decay_fraction,
        dropout=args.dropout,
        average_decay=args.average_decay,
        precision=args.precision,
        gradient_checkpointing=args.gradient_checkpointing,
        seed=args.seed,
    )


def write_run(run: "Run", json_file: Path | None) -> None:
    """Print a finished run, its folder last, and write it as JSON if asked to."""
    result = run.result() or {}
    write_line(
        f"tune loss {result['tune']['loss_nats']:.4f} nats a token, {result['tune']['bits_per_byte']:.4f} bits a byte; "
        f"train {result['final_train_loss_nats']:.4f}; {result['num_params']['without_embeddings']:,} parameters "
        f"({result['num_params']['total']:,} with embeddings)"
    )
    write_line(f"{run.folder}")
    if json_file is not None:
        write_json(json_file, {"run": run.folder, **run.identity, "result": result})
