"""``forerun world``: world models from pixels; collect, train, probe, plan, surprise, reproduce."""

import argparse
from pathlib import Path
from typing import Any

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number, add_threads_option, input_file
from forerun.cli.progress import progress_bars
from forerun.cli.world_clone import add_clone
from forerun.cli.world_use import add_plan, add_probe, add_reproduce, add_surprise

_DESCRIPTION = """\
A world model learned from frames and actions, without rewards and without a pretrained encoder (LeWorldModel): it
predicts the embedding of the next frame, SIGReg keeps embeddings from collapsing, plans are made in their space.

collect    record episodes of a task; the same command goes on where it was cut
import     take episodes out of an HDF5 file of your own
train      train a model with its health on screen; a collapsing run is stopped
clone      clone a policy from the same episodes, to compare with
probe      the health of a trained model, and what can be read off its embeddings
plan       success at held-out tasks, between chance, a collapsed control and the expert
surprise   how well a prediction error shows that the world broke its rules, at a false-alarm rate you set
reproduce  all of it in one command
"""
_EPILOG = """\
examples:
  forerun world reproduce --task two-room --scale smoke --out world
  forerun world collect --out rooms --episodes 1000
  forerun world train --data rooms --out run --config small
  forerun world plan --model run/model --data rooms --protocol opposite --goal landmarks
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's options."""
    parser = add_command(
        commands,
        "world",
        summary="world models from pixels: train, plan, be surprised",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_collect(actions)
    _add_import(actions)
    _add_train(actions)
    add_clone(actions)
    add_probe(actions)
    add_plan(actions)
    add_surprise(actions)
    add_reproduce(actions)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run one action."""
    import torch

    torch.set_num_threads(args.threads)
    status: int = args.action(args)
    return status


def _add_collect(actions: Commands) -> None:
    collect = add_command(
        actions,
        "collect",
        summary="record episodes of a task",
        description="Records frames, blocks of actions and what is known of each state. Frames are drawn only where\n"
        "one is kept. push-t and stable-two-room are worlds of stable-worldmodel (extra 'stable-worlds').",
        epilog="examples:\n  forerun world collect --out rooms --episodes 1000\n"
        "  forerun world collect --out varied --vary color size door --seed 7\n"
        "  forerun world collect --task push-t --out pushes --resolution 64",
    )
    collect.add_argument(
        "--task", choices=("two-room", "push-t", "stable-two-room"), default="two-room", help="default: %(default)s"
    )
    collect.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the data")
    add_number(collect, "--episodes", 1000, "how many")
    add_number(collect, "--env-steps", 100, "actions of an episode")
    add_number(collect, "--frame-skip", 5, "actions between two frames")
    add_number(collect, "--resolution", 32, "pixels of a side")
    add_number(collect, "--expert-share", 0.2, "share of episodes of the expert")
    add_number(collect, "--random-share", 0.3, "share of the random policy; the rest is the expert with noise")
    collect.add_argument(
        "--vary",
        nargs="+",
        choices=("color", "size", "door"),
        default=[],
        help="what differs between episodes of two-room",
    )
    add_number(collect, "--seed", 0, "root of all chance")
    add_threads_option(collect)
    add_json_option(collect)
    collect.set_defaults(action=_collect)


def _collect(args: argparse.Namespace) -> int:
    from forerun.worldmodels.collection import CollectConfig, collect

    config = CollectConfig(
        task=args.task,
        num_episodes=args.episodes,
        env_steps=args.env_steps,
        frame_skip=args.frame_skip,
        resolution=args.resolution,
        expert_share=args.expert_share,
        random_share=args.random_share,
        factors=tuple(args.vary),
        seed=args.seed,
    )
    with progress_bars() as show:
        found = collect(args.out, config, report=lambda done, total: show("episodes", done, total, ""))
    write_line(
        f"{args.out}: {found['num_episodes']} episodes, {found['num_frames']} frames"
        + (f"; {found['num_kept']} episodes were there already" if found["num_kept"] else "")
    )
    if args.json is not None:
        write_json(args.json, found)
    return 0


def _add_import(actions: Commands) -> None:
    imported = add_command(
        actions,
        "import",
        summary="take episodes out of an HDF5 file",
        description="Reads a file with a row for each frame: frames (uint8, RGB), the action after each, the rows of\n"
        "each episode. Keeps every frame-skip-th frame, and the actions between two as one block.",
        epilog="examples:\n  forerun world import robot.h5 --out data --resolution 32 --state-keys proprio\n"
        "  forerun world import demo.h5 --out data --pixels-key obs --action-key act --length-key lengths",
    )
    imported.add_argument("file", type=input_file, help="the HDF5 file")
    imported.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the data")
    for name, default in (("pixels", "pixels"), ("action", "action"), ("length", "ep_len")):
        imported.add_argument(f"--{name}-key", default=default, metavar="KEY", help="dataset (default: %(default)s)")
    imported.add_argument("--state-keys", nargs="+", default=[], metavar="KEY", help="known quantities, for probes")
    add_number(imported, "--frame-skip", 5, "every so-manieth frame is kept")
    imported.add_argument("--resolution", type=int, metavar="N", help="average frames down to N pixels of a side")
    add_threads_option(imported)
    add_json_option(imported)
    imported.set_defaults(action=_import)


def _import(args: argparse.Namespace) -> int:
    from forerun.data.pixel_hdf5 import Hdf5Config, import_hdf5

    config = Hdf5Config(
        pixels_key=args.pixels_key,
        action_key=args.action_key,
        length_key=args.length_key,
        state_keys=tuple(args.state_keys),
        frame_skip=args.frame_skip,
        resolution=args.resolution,
    )
    with progress_bars() as show:
        found = import_hdf5(args.file, args.out, config, report=lambda done, total: show("episodes", done, total, ""))
    write_line(
        f"{args.out}: {found['num_episodes']} episodes, {found['num_frames']} frames; {found['num_dropped']} too short"
    )
    if args.json is not None:
        write_json(args.json, found)
    return 0


def _add_train(actions: Commands) -> None:
    train = add_command(
        actions,
        "train",
        summary="train a world model",
        description="Trains with the health of held-out embeddings on screen, and stops a run that collapses.\n"
        "A cut run goes on with the same command.",
        epilog="examples:\n  forerun world train --data rooms --out run --config small\n"
        "  forerun world train --data rooms --out control --config small --lambda 0 --keep-going",
    )
    train.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of 'world collect'")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    train.add_argument(
        "--config", choices=("paper", "medium", "small", "smoke"), default="small", help="sizes (default: %(default)s)"
    )
    train.add_argument("--lambda", dest="weight", type=float, metavar="X", help="factor of the regulariser")
    train.add_argument(
        "--regularizer", choices=("sigreg", "vicreg", "ema"), default="sigreg",
        help="what keeps embeddings from collapsing (default: %(default)s)",
    )  # fmt: skip
    train.add_argument(
        "--scaling", choices=("published", "batch_invariant"), default="published",
        help="whether SIGReg presses harder with a larger batch (default: %(default)s)",
    )  # fmt: skip
    train.add_argument("--steps", type=int, metavar="N", help="optimiser steps")
    train.add_argument("--batch-size", type=int, metavar="N", help="windows of a step")
    train.add_argument("--learning-rate", type=float, metavar="X", help="peak")
    add_number(train, "--seed", 0, "root of all chance")
    train.add_argument("--keep-going", action="store_true", help="let a run collapse, for a control")
    add_threads_option(train)
    add_json_option(train)
    train.set_defaults(action=_train)


def _train(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from forerun.data.pixel_shards import read_dataset
    from forerun.worldmodels.jepa.config import TRAIN_CONFIGS
    from forerun.worldmodels.jepa.train import train_world

    config = TRAIN_CONFIGS[args.config]
    changes: dict[str, Any] = {"num_steps": args.steps, "batch_size": args.batch_size}
    changes |= {"learning_rate": args.learning_rate, "seed": args.seed}
    objective = replace(
        config.objective,
        regularizer=args.regularizer,
        weight=config.objective.weight if args.weight is None else args.weight,
        sigreg=replace(config.objective.sigreg, scaling=args.scaling),
    )
    config = replace(
        config, objective=objective, **{name: value for name, value in changes.items() if value is not None}
    )
    with progress_bars() as show:
        result = train_world(
            read_dataset(args.data),
            args.out,
            config,
            stops_on_collapse=not args.keep_going,
            report=lambda done, total, detail: show("train", done, total, detail),
        )
    write_line(f"{args.out / 'model'}: {result['num_params']:,} parameters, {result['cpu_s_since_start']:.0f} CPU-s")
    if result["why_collapsed"] is not None:
        write_line(f"collapsed: {result['why_collapsed']}")
    if args.json is not None:
        write_json(args.json, result)
    return 0
