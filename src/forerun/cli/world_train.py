"""``forerun world train`` and ``tune``: a world model, and the factor of its regulariser."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number, add_threads_option
from forerun.cli.progress import progress_bars
from forerun.cli.world_options import add_data_option

if TYPE_CHECKING:
    from forerun.data.pixel_shards import PixelDataset
    from forerun.worldmodels.jepa.config import JepaTrainConfig
    from forerun.worldmodels.jepa.tune import TuneConfig, Tuned


def add_train(actions: Commands) -> None:
    """Add the action."""
    train = add_command(
        actions,
        "train",
        summary="train a world model",
        description="Trains with the health of held-out embeddings on screen, and stops a run that collapses.\n"
        "A cut run goes on with the same command.",
        epilog="examples:\n  forerun world train --data rooms --out run --config small\n"
        "  forerun world train --data rooms --out run --config small --lambda auto\n"
        "  forerun world train --data rooms --out control --config small --lambda 0 --keep-going",
    )
    _add_shared_options(train)
    train.add_argument(
        "--lambda", dest="weight", type=_weight, metavar="X",
        help="factor of the regulariser; 'auto': what 'world tune' finds first, in OUT/tune",
    )  # fmt: skip
    train.add_argument("--steps", type=int, metavar="N", help="optimiser steps")
    train.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="cpu",
        help="where to train; auto: a GPU where there is one (default: %(default)s)",
    )  # fmt: skip
    train.add_argument("--keep-going", action="store_true", help="let a run collapse, for a control")
    train.set_defaults(action=_train)


def add_tune(actions: Commands) -> None:
    """Add the action."""
    tune = add_command(
        actions,
        "tune",
        summary="find the factor of the regulariser",
        description="Short runs halve an interval of lambda on a logarithmic scale; the health monitor says on which\n"
        "side each is. Found is the least lambda that keeps embeddings in use. No label or reward is looked at.\n"
        "A cut search goes on with the same command.",
        epilog="examples:\n  forerun world tune --data rooms --out tune --config small --steps 400\n"
        "  forerun world tune --data rooms --out tune --config smoke --low 0.002 --high 0.2 --least-rank 8",
    )
    _add_shared_options(tune)
    add_number(tune, "--steps", 400, "optimiser steps of a run")
    add_number(tune, "--trials", 8, "runs, at most")
    add_number(tune, "--low", 1e-3, "least lambda")
    add_number(tune, "--high", 1.0, "greatest lambda")
    add_number(tune, "--least-std", 0.8, "spread of embeddings that is wanted")
    add_number(tune, "--least-rank", 4.0, "effective rank that is wanted")
    tune.set_defaults(action=_tune)


def _train(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from forerun.data.pixel_shards import read_dataset
    from forerun.training.devices import device_named
    from forerun.worldmodels.jepa.train import train_world
    from forerun.worldmodels.jepa.tune import TuneConfig

    device = device_named(args.device, option="--device")
    dataset = read_dataset(args.data)
    config = _config(args)
    if args.steps is not None:
        config = replace(config, num_steps=args.steps)
    weight = args.weight
    if weight == "auto":
        weight = _searched(dataset, args.out / "tune", config, TuneConfig()).weight
    if weight is not None:
        config = replace(config, objective=replace(config.objective, weight=weight))
    with progress_bars() as show:
        result = train_world(
            dataset,
            args.out,
            config,
            stops_on_collapse=not args.keep_going,
            device=device,
            report=lambda done, total, detail: show("train", done, total, detail),
        )
    write_line(f"{args.out / 'model'}: {result['num_params']:,} parameters, {result['cpu_s_since_start']:.0f} CPU-s")
    if result["why_collapsed"] is not None:
        write_line(f"collapsed: {result['why_collapsed']}")
    if args.json is not None:
        write_json(args.json, result)
    return 0


def _tune(args: argparse.Namespace) -> int:
    from forerun.data.pixel_shards import read_dataset
    from forerun.worldmodels.jepa.tune import TuneConfig

    tuning = TuneConfig(
        low=args.low,
        high=args.high,
        num_trials=args.trials,
        num_steps=args.steps,
        least_std=args.least_std,
        least_rank=args.least_rank,
    )
    found = _searched(read_dataset(args.data), args.out, _config(args), tuning)
    if args.json is not None:
        write_json(args.json, found.to_json())
    return 0


def _searched(dataset: "PixelDataset", folder: Path, config: "JepaTrainConfig", tuning: "TuneConfig") -> "Tuned":
    from forerun.worldmodels.jepa.tune import tune_lambda

    lines: list[str] = []
    with progress_bars() as show:
        found = tune_lambda(
            dataset,
            folder,
            config,
            tuning,
            report=lambda done, total, detail: show("tune", done, total, detail),
            on_trial=lambda trial: lines.append(
                f"lambda {trial.weight:<8.4g} {'healthy ' if trial.is_healthy else 'too low '} {trial.why}"
            ),
        )
    for line in lines:
        write_line(line)
    below = "" if found.unhealthy_weight is None else f"; {found.unhealthy_weight:.4g} is too low"
    write_line(f"--lambda {found.weight:.4g}{below}")
    return found


def _config(args: argparse.Namespace) -> "JepaTrainConfig":
    """Return the named configuration with what the shared options change."""
    from dataclasses import replace

    from forerun.worldmodels.jepa.config import TRAIN_CONFIGS

    config = TRAIN_CONFIGS[args.config]
    measure = replace(config.objective.sigreg, scaling=args.scaling, num_subspaces=args.subspaces)
    changes: dict[str, Any] = {"batch_size": args.batch_size, "learning_rate": args.learning_rate, "seed": args.seed}
    if args.latent_dim is not None:
        changes["model"] = replace(config.model, latent_dim=args.latent_dim)
    return replace(
        config,
        objective=replace(config.objective, regularizer=args.regularizer, sigreg=measure),
        **{name: value for name, value in changes.items() if value is not None},
    )


def _add_shared_options(parser: argparse.ArgumentParser) -> None:
    add_data_option(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--config", choices=("paper", "medium", "keypoints", "small", "smoke"), default="small",
        help="sizes; keypoints: medium, with an encoder that says where things are (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--regularizer", choices=("sigreg", "vicreg", "ema"), default="sigreg",
        help="what keeps embeddings from collapsing (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--scaling", choices=("published", "batch_invariant"), default="published",
        help="whether SIGReg presses harder with a larger batch (default: %(default)s)",
    )  # fmt: skip
    add_number(parser, "--subspaces", 1, "parts of the space that are Gaussian each on its own (Sub-JEPA)")
    parser.add_argument("--latent-dim", type=int, metavar="N", help="numbers of an embedding")
    parser.add_argument("--batch-size", type=int, metavar="N", help="windows of a step")
    parser.add_argument("--learning-rate", type=float, metavar="X", help="peak")
    add_number(parser, "--seed", 0, "root of all chance")
    add_threads_option(parser)
    add_json_option(parser)


def _weight(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number or 'auto'") from error
