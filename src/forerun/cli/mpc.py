"""``forerun mpc``: diffusion model predictive control: record, train, plan, adapt, reproduce."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from forerun.cli.console import write_json, write_line
from forerun.cli.mpc_bench import add_bench
from forerun.cli.mpc_distill import add_distill
from forerun.cli.mpc_plan import add_defect_option, add_plan
from forerun.cli.mpc_study import add_reproduce
from forerun.cli.options import (
    Commands,
    add_command,
    add_json_option,
    add_number,
    add_threads_option,
    add_tracker_options,
    input_file,
    output_file,
    use_tracker_options,
)
from forerun.cli.progress import progress_bars

if TYPE_CHECKING:
    from forerun.data.trajectories import Trajectories

_DESCRIPTION = """\
Diffusion model predictive control: learn from recordings what actions are likely and what they lead to; then sample
plans, imagine their futures, and execute the one that scores best, for a reward that is given when it runs.
"""
_EPILOG = """\
examples:
  forerun mpc reproduce --task smoke --out smoke      all of it in two minutes, against a known optimum
  forerun mpc reproduce --task pointmaze --out maze   another goal each time; it moves, and a zone is forbidden
  forerun mpc collect --task pendulum --out data.npz
  forerun mpc train --task pendulum --data data.npz --out models --tensorboard
  forerun mpc plan --models models --render episode.gif
  forerun mpc plan --models models --objective "near(cos=-1.0) + 0.1 * energy()"
  forerun mpc collect --task pendulum --defect --episodes 60 --out play.npz
  forerun mpc adapt --models models --play play.npz --replay data.npz --out adapted
  forerun mpc distill --models models --out policy
  forerun mpc bench --models models --plot pareto.png
"""
_TASKS = "double-integrator, pendulum, pointmaze, halfcheetah, walker2d, push"


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "mpc",
        summary="diffusion model predictive control",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_collect(actions)
    _add_train(actions)
    add_plan(actions)
    _add_adapt(actions)
    add_distill(actions)
    add_bench(actions)
    add_reproduce(actions)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run one action."""
    status: int = args.action(args)
    return status


def _add_collect(actions: Commands) -> None:
    collect = actions.add_parser(
        "collect",
        help="record episodes of a task",
        description="Records a mixture of behaviours, good and bad, one for each episode.",
    )
    collect.add_argument("--task", required=True, metavar="NAME", help=_TASKS)
    collect.add_argument("--out", type=output_file, required=True, metavar="FILE", help="recording to write, .npz")
    collect.add_argument("--episodes", type=int, metavar="N", help="how many (default: the task's number)")
    add_defect_option(collect, "in the task with a faulty actuator: play data to adapt on")
    add_number(collect, "--seed", 0, "of behaviours and episodes")
    add_json_option(collect)
    collect.set_defaults(action=_collect)


def _add_train(actions: Commands) -> None:
    train = actions.add_parser(
        "train",
        help="train the models of a task",
        description="Trains action proposal, multi-step dynamics, values and baselines, each on its own. The same "
        "command goes on where a cut run stopped.",
    )
    train.add_argument("--task", required=True, metavar="NAME", help=_TASKS)
    train.add_argument("--data", type=input_file, required=True, metavar="FILE", help="from collect, or your own")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for the models")
    train.add_argument(
        "--scale", choices=("smoke", "small", "paper"), default="smoke", help="size of the networks (default: smoke)"
    )
    train.add_argument(
        "--value",
        choices=("returns", "stitched"),
        help="what the value of a state learns: the data's returns, or the best that pieces of different episodes make "
        "together (default: stitched for pointmaze, else returns)",
    )
    add_number(train, "--history", 1, "states that the models see, for worlds that the present does not show whole")
    add_number(train, "--steps", 2000, "optimiser steps of each model")
    add_number(train, "--batch-size", 256, "windows of a step")
    add_number(train, "--learning-rate", 1e-3, "peak")
    add_number(train, "--seed", 0, "of weights, batches and noise")
    add_tracker_options(train)
    add_threads_option(train)
    add_json_option(train)
    train.set_defaults(action=_train)


def _add_adapt(actions: Commands) -> None:
    adapt = actions.add_parser(
        "adapt",
        help="tune only the dynamics on a little play data of a changed world",
        description="Tunes the dynamics in short rounds and keeps the round with the least multi-step error on "
        "held-out play episodes. Proposal and values stay as they are.",
    )
    adapt.add_argument("--models", type=Path, required=True, metavar="DIR", help="from train")
    adapt.add_argument("--play", type=input_file, required=True, metavar="FILE", help="recording of the changed world")
    adapt.add_argument(
        "--replay",
        type=input_file,
        metavar="FILE",
        help="recording of the old one, to say when it changed, or to mix in",
    )
    add_number(adapt, "--replay-share", 0.0, "old episodes mixed in for each new one")
    adapt.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for the models")
    add_number(adapt, "--rounds", 6, "at most so many")
    add_number(adapt, "--steps", 100, "optimiser steps of a round")
    add_number(adapt, "--seed", 0, "of batches and noise")
    add_threads_option(adapt)
    add_json_option(adapt)
    adapt.set_defaults(action=_adapt)


def _collect(args: argparse.Namespace) -> int:
    from forerun.envs.control_tasks import control_task
    from forerun.recipes.mpc.collect import collect
    from forerun.recipes.mpc.prepare import damaged

    task = control_task(args.task)
    count = task.num_episodes if args.episodes is None else args.episodes
    with progress_bars() as show:
        data = collect(
            task,
            num_episodes=count,
            seed=args.seed,
            make_env=None if args.defect is None else damaged(task, args.defect),
            purpose="data" if args.defect is None else "play with the defect",
            on_step=lambda done, num_steps: show("collect", done, num_steps, ""),
        )
    data.save(args.out)
    facts = _facts(data)
    write_line(
        f"{args.out}: {facts['num_episodes']} episodes, {facts['num_steps']} steps, return "
        f"{facts['mean_return']:.3f} in the mean, {facts['best_return']:.3f} at best"
    )
    if args.json is not None:
        write_json(args.json, facts)
    return 0


def _train(args: argparse.Namespace) -> int:
    import torch

    from forerun.data.trajectory_files import load_trajectories
    from forerun.envs.control_tasks import control_task
    from forerun.recipes.mpc.prepare import trainer_of
    from forerun.worldmodels.diffusion.bundle import ModelBundle
    from forerun.worldmodels.diffusion.train import DmpcTrainingConfig

    torch.set_num_threads(args.threads)
    use_tracker_options(args)
    task = control_task(args.task)
    data = load_trajectories(args.data, state_names=task.state_names, action_names=task.action_names)
    training = DmpcTrainingConfig(
        num_steps=args.steps, batch_size=args.batch_size, learning_rate=args.learning_rate, seed=args.seed
    )
    with progress_bars() as show:
        trainer = trainer_of(
            task,
            data,
            scale=args.scale,
            training=training,
            value=args.value,
            history=args.history,
            directory=args.out.with_name(f"{args.out.name}.checkpoints"),
            report=lambda name, done, total, detail: show(f"train {name}", done, total, detail),
        )
        bundle = ModelBundle.trained(trainer, task=task.name, bounds=task.bounds)
    record = {"digest": data.digest(), "num_train_steps": args.steps, "scale": args.scale}
    bundle.save(args.out, record=record)
    write_line(f"wrote {args.out}; plan with: forerun mpc plan --models {args.out}")
    if args.json is not None:
        write_json(args.json, record | _facts(data))
    return 0


def _adapt(args: argparse.Namespace) -> int:
    import torch

    from forerun.data.trajectory_files import load_trajectories
    from forerun.planning.drift_watch import first_alarm
    from forerun.recipes.mpc.act import prediction_error
    from forerun.recipes.mpc.adapt import AdaptConfig, adapt
    from forerun.worldmodels.diffusion.bundle import ModelBundle

    torch.set_num_threads(args.threads)
    bundle = ModelBundle.load(args.models)
    names = {"state_names": bundle.state_names, "action_names": bundle.action_names}
    play = load_trajectories(args.play, **names)
    replay = None if args.replay is None else load_trajectories(args.replay, **names)
    with progress_bars() as show:
        found = adapt(
            bundle,
            play,
            replay=replay,
            config=AdaptConfig(
                num_rounds=args.rounds, steps_per_round=args.steps, replay_share=args.replay_share, seed=args.seed
            ),
            report=show,
        )
    if replay is not None:
        # The replay's own errors are the alarm's calibration.
        alarm = first_alarm(prediction_error(bundle, seed=args.seed), replay, play)
        when = "no alarm: it may not be needed" if alarm is None else f"an alarm after {alarm} steps"
        write_line(f"drift of the play data against the replay: {when}")
    found.bundle.save(args.out, record={"adapted_from": str(args.models), "play_digest": play.digest()})
    shown = " -> ".join(f"{error:.3f}" for error in found.errors)
    write_line(f"held-out multi-step error {shown}; kept round {found.best_round}")
    write_line(f"wrote {args.out}; plan with: forerun mpc plan --models {args.out} --defect")
    if args.json is not None:
        write_json(args.json, {"errors": list(found.errors), "best_round": found.best_round})
    return 0


def _facts(data: "Trajectories") -> dict[str, float | int | str]:
    return {
        "num_episodes": len(data.episodes),
        "num_steps": data.num_steps,
        "mean_return": float(data.returns.mean()),
        "best_return": float(data.returns.max()),
        "digest": data.digest(),
    }
