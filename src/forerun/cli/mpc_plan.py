"""``forerun mpc plan``: act in a task with trained models, for its own reward or another one."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_json_option, add_number, add_threads_option, output_file

if TYPE_CHECKING:
    from forerun.data.trajectories import Trajectories

_EPILOG = """\
words of --objective, with + and - and * by numbers; NAME is a number of the task's state:
  task()                      the task's own reward, with the learned value of the end
  near(NAME=1.0, ...)         wish for values: minus the absolute error
  speed(2.0)                  the same of the task's velocity
  unfamiliar()                how unlike the recording a plan and its future are: subtract it
  energy()                    wish for little effort: minus the squared actions
  keep_out(NAME=(0, 1), ...)  how deep inside a box: subtract it
  keep_in(NAME=(0, 1), ...)   how far outside a box: subtract it
"""


def add_plan(actions: Commands) -> None:
    """Add the action."""
    parser = actions.add_parser(
        "plan",
        help="act with trained models, for a reward given now",
        description="Runs episodes with one planner. A new reward or a hard constraint needs no training.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="from train or adapt")
    parser.add_argument(
        "--planner", default="ssr", metavar="NAME", help="ssr, ssr-paper, ssr-one-step, proposal, cloning, random, "
        "cem, mppi, ssr-true (default: ssr)",
    )  # fmt: skip
    parser.add_argument("--objective", metavar="TEXT", help="what is wanted (default: task())")
    parser.add_argument(
        "--constraint",
        action="append",
        default=[],
        metavar="TEXT",
        help="a hard limit, keep_out(...) or keep_in(...); may be given several times",
    )
    add_number(parser, "--episodes", 10, "side by side")
    add_number(parser, "--samples", 64, "candidates of a plan")
    add_number(parser, "--execute-horizon", 1, "actions executed of each plan")
    parser.add_argument("--deadline-ms", type=float, metavar="X", help="time a plan may take (default: any)")
    parser.add_argument("--defect", action="store_true", help="in the task with its weak actuator")
    add_number(parser, "--seed", 0, "of starts and planning")
    parser.add_argument("--render", type=output_file, metavar="FILE", help="also draw the first episode, .gif")
    add_threads_option(parser)
    add_json_option(parser)
    parser.set_defaults(action=_plan)


def _plan(args: argparse.Namespace) -> int:
    import torch

    from forerun.core.errors import ConfigError
    from forerun.envs.control_tasks import control_task
    from forerun.planning.controller import ControllerConfig
    from forerun.recipes.mpc.contenders import Setting, task_objective
    from forerun.recipes.mpc.evaluate import episodes_of
    from forerun.recipes.mpc.novelty import language
    from forerun.recipes.mpc.prepare import damaged
    from forerun.recipes.mpc.show import render_episode
    from forerun.worldmodels.diffusion.bundle import ModelBundle

    torch.set_num_threads(args.threads)
    if args.episodes < 1:
        raise ConfigError(f"--episodes {args.episodes}: must be at least 1")
    bundle = ModelBundle.load(args.models)
    task = control_task(bundle.task)
    control = ControllerConfig(
        execute_horizon=args.execute_horizon,
        deadline_s=None if args.deadline_ms is None else 1e-3 * args.deadline_ms,
        history=bundle.config.history,
    )
    setting = Setting(
        task=task,
        bundle=bundle,
        objective=task_objective(task, bundle),
        num_samples=args.samples,
        control=control,
    )
    words = language(setting)
    objective = words.objective(args.objective or "task()")
    limits = [words.constraint(text) for text in args.constraint]
    wanted = objective.subject_to(*limits) if limits else objective
    setting = Setting(task=task, bundle=bundle, objective=wanted, num_samples=args.samples, control=control)
    env = damaged(task)(args.episodes) if args.defect else None
    episodes, seconds, num_failed = episodes_of(
        args.planner, setting, num_episodes=args.episodes, seed=args.seed, env=env
    )
    found = {
        "returns": episodes.returns.tolist(),
        "mean_return": float(episodes.returns.mean()),
        "plan_cpu_ms": 1e3 * seconds / episodes.num_steps,
        "num_failed": num_failed,
        "mean_late_state": _late_means(episodes),
    }
    write_line(f"return by the task's own reward {found['mean_return']:.3f} over {args.episodes} episodes")
    write_line("second half, mean of " + ", ".join(f"{name} {x:.3f}" for name, x in found["mean_late_state"].items()))
    write_line(f"{found['plan_cpu_ms']:.2f} CPU ms for a step; {num_failed} plans failed")
    if args.render is not None:
        render_episode(bundle, args.render, way=args.planner, objective=wanted, title=args.objective, seed=args.seed)
        write_line(f"wrote {args.render}")
    if args.json is not None:
        write_json(args.json, found)
    return 0


def _late_means(episodes: "Trajectories") -> dict[str, float]:
    import numpy as np

    late = np.concatenate([episode.states[len(episode.states) // 2 :] for episode in episodes.episodes])
    return dict(zip(episodes.state_names, late.mean(axis=0).tolist(), strict=True))
