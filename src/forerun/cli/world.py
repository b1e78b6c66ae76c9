"""``forerun world``: world models from pixels; collect, train, probe, plan, surprise, reproduce."""

import argparse
from pathlib import Path

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number, add_threads_option
from forerun.cli.progress import progress_bars
from forerun.cli.world_bench import add_bench
from forerun.cli.world_clone import add_clone
from forerun.cli.world_convert import add_convert, add_export
from forerun.cli.world_import import add_import
from forerun.cli.world_plan import add_plan
from forerun.cli.world_train import add_train, add_tune
from forerun.cli.world_use import add_probe, add_reproduce, add_surprise

_DESCRIPTION = """\
A world model learned from frames and actions, without rewards and without a pretrained encoder (LeWorldModel): it
predicts the embedding of the next frame, SIGReg keeps embeddings from collapsing, plans are made in their space.

collect    record episodes of a task; the same command goes on where it was cut
import     take episodes of your own, from HDF5 or a folder of videos
train      train a model with its health on screen; a collapsing run is stopped
tune       find the factor of the regulariser by short runs
clone      clone a policy from the same episodes, to compare with
probe      the health of a trained model, and what can be read off its embeddings
plan       success at held-out tasks, between chance, a collapsed control and the expert
surprise   how well a prediction error shows that the world broke its rules, at a false-alarm rate you set
bench      SIGReg against other ways to a world model
reproduce  all of it in one command
convert    take a model out of a published checkpoint
export     write encoder and predictor as programs of torch.export
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
    add_import(actions)
    add_train(actions)
    add_tune(actions)
    add_clone(actions)
    add_probe(actions)
    add_plan(actions)
    add_surprise(actions)
    add_bench(actions)
    add_reproduce(actions)
    add_convert(actions)
    add_export(actions)
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
        "one is kept. push-t and stable-two-room are worlds of stable-worldmodel (extra 'stable-worlds'), reacher is\n"
        "simulated and drawn by MuJoCo (extra 'worlds').",
        epilog="examples:\n  forerun world collect --out rooms --episodes 1000\n"
        "  forerun world collect --out varied --vary color size door --seed 7\n"
        "  forerun world collect --task push-t --out pushes --resolution 64\n"
        "  forerun world collect --task reacher --out arms --episodes 400",
    )
    collect.add_argument(
        "--task",
        choices=("two-room", "push-t", "stable-two-room", "reacher"),
        default="two-room",
        help="default: %(default)s",
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
