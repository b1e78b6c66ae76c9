"""``forerun world clone``: a policy imitated from recorded episodes, to compare a world model with."""

import argparse
from pathlib import Path

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number, add_threads_option
from forerun.cli.progress import progress_bars
from forerun.cli.world_options import add_data_option


def add_clone(actions: Commands) -> None:
    """Add the action."""
    clone = add_command(
        actions,
        "clone",
        summary="clone a policy that is given goals",
        description="Goal-conditioned behaviour cloning: from a frame and a goal to what the recorded episode did\n"
        "there when the goal was a later frame. A baseline without a world model, for 'world plan --clone'.",
        epilog="examples:\n  forerun world clone --data pushes --out cloned\n"
        "  forerun world plan --model run/model --data pushes --clone cloned",
    )
    add_data_option(clone)
    clone.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the policy")
    clone.add_argument(
        "--encoder", choices=("cnn", "keypoints"), default="cnn", help="of frames, as of a model (default: %(default)s)"
    )
    add_number(clone, "--steps", 2000, "optimiser steps")
    add_number(clone, "--batch-size", 128, "frames of a step")
    add_number(clone, "--ahead", 5, "a goal is at most so many blocks ahead")
    add_number(clone, "--seed", 0, "root of all chance")
    add_threads_option(clone)
    add_json_option(clone)
    clone.set_defaults(action=_clone)


def _clone(args: argparse.Namespace) -> int:
    from forerun.data.pixel_shards import read_dataset
    from forerun.worldmodels.cloning import CloningConfig, clone_policy
    from forerun.worldmodels.jepa.encoder import ENCODERS

    dataset = read_dataset(args.data)
    config = CloningConfig(
        encoder=ENCODERS[args.encoder](image_size=dataset.episodes.image_size[0]),
        most_blocks_ahead=args.ahead,
        num_steps=args.steps,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    with progress_bars() as show:
        result = clone_policy(
            dataset, args.out, config, report=lambda done, total, detail: show("clone", done, total, detail)
        )
    write_line(f"{args.out}: {result['num_params']:,} parameters, loss {result['final_loss']:.3f}")
    if args.json is not None:
        write_json(args.json, result)
    return 0
