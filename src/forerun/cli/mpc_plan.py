"""``forerun mpc plan``: act in a task with trained models, for its own reward or another one."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun.cli.console import write_json, write_line
from forerun.cli.options import (
    Commands,
    add_json_option,
    add_number,
    add_threads_option,
    input_file,
    output_file,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from forerun.data.trajectories import Trajectories

_PLANNERS = (
    "ssr", "ssr-paper", "ssr-refine", "ssr-careful", "ssr-cvar", "ssr-familiar", "ssr-preview", "ssr-chunk", "ssr-warm",
    "ssr-16", "ssr-2-2", "ssr-8-8", "ssr-one-step", "proposal", "cloning", "random", "cem", "icem", "mppi", "ssr-true",
)  # fmt: skip
_EPILOG = """\
words of --objective, with + and - and * by numbers; NAME is a number of the task's state:
  task()                      the task's own reward with the learned value of the end: reward() + value()
  near(NAME=1.0, ...)         wish for values: minus the absolute error
  speed(2.0)                  the same of the task's velocity
  unfamiliar()                how unlike the recording a plan and its future are: subtract it
  energy()                    wish for little effort: minus the squared actions
  keep_out(NAME=(0, 1), ...)  how deep inside a box: subtract it
  keep_in(NAME=(0, 1), ...)   how far outside a box: subtract it

examples:
  forerun mpc plan --models models --objective "near(cos=-1.0) + 0.1 * energy()" --render episode.gif
  forerun mpc plan --models models --record healthy.npz
  forerun mpc plan --models models --defect --watch-drift healthy.npz     says when the world has changed
  forerun mpc plan --models models --defect --watch-drift healthy.npz --adapt-after 50     and tunes the dynamics then
  forerun mpc plan --models models --step-ms 50                           plans in a thread while actions run
  forerun mpc plan --models models --speculate                            plans ahead for what it expects to see
  forerun mpc plan --models models --plot seen.png                        what was predicted, beside what came
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
        "--planner", default="ssr", metavar="NAME", help=f"{', '.join(_PLANNERS)} (default: ssr); ssr-P-D takes P and "
        "D denoising steps"
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
    parser.add_argument(
        "--fallback",
        choices=("continue", "rest"),
        help="where no plan keeps the limits: go on with the last plan, or rest in the middle of the box of actions "
        "(default: the plan that breaks them least); rest also where a plan is late or failed",
    )
    add_defect_option(parser, "in the task with a faulty actuator")
    add_number(parser, "--seed", 0, "of starts and planning")
    parser.add_argument(
        "--step-ms", type=float, metavar="X", help="a step lasts so long, and the planner works in a thread meanwhile"
    )
    parser.add_argument(
        "--speculate",
        type=int,
        nargs="?",
        const=1,
        metavar="N",
        help="while an action runs, plan for the N likeliest next observations (default of N: 1)",
    )
    parser.add_argument("--policy", type=Path, metavar="DIR", help="from distill: it acts instead of the planner")
    parser.add_argument("--supervise", action="store_true", help="the planner acts where the policy is not sure")
    parser.add_argument(
        "--watch-drift",
        type=input_file,
        metavar="FILE",
        help="raise an alarm where predictions fail more than in this recording of the healthy world",
    )
    parser.add_argument(
        "--adapt-after",
        type=int,
        metavar="N",
        help="with --watch-drift: tune the dynamics on the N steps after the first alarm, and go on with them",
    )
    parser.add_argument("--record", type=output_file, metavar="FILE", help="also write the episodes, .npz")
    parser.add_argument("--render", type=output_file, metavar="FILE", help="also draw the first episode, .gif or .mp4")
    parser.add_argument(
        "--plot",
        type=output_file,
        metavar="FILE",
        help="also draw predicted against real states of the first episode, .png; with --watch-drift the evidence too",
    )
    add_threads_option(parser)
    add_json_option(parser)
    parser.set_defaults(action=_plan)


def add_defect_option(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add ``--defect [NAME]``: ``None`` is the healthy task, empty its first defect.

    Args:
        parser: Gets the option.
        meaning: What it does there.
    """
    parser.add_argument(
        "--defect", nargs="?", const="", metavar="NAME", help=f"{meaning} (without NAME: the task's first defect)"
    )


def _plan(args: argparse.Namespace) -> int:
    from dataclasses import replace

    import torch

    from forerun.core.errors import ConfigError
    from forerun.data.trajectories import Trajectories
    from forerun.recipes.mpc.act import ActConfig, act_episodes
    from forerun.recipes.mpc.contenders import opened
    from forerun.recipes.mpc.distill import Distilled
    from forerun.recipes.mpc.novelty import language
    from forerun.recipes.mpc.prediction_plot import draw_predictions
    from forerun.recipes.mpc.prepare import damaged
    from forerun.recipes.mpc.show import render_episode

    torch.set_num_threads(args.threads)
    if args.episodes < 1:
        raise ConfigError(f"--episodes {args.episodes}: must be at least 1")
    setting = opened(args.models, num_samples=args.samples)
    control = replace(
        setting.control,
        execute_horizon=args.execute_horizon,
        deadline_s=None if args.deadline_ms is None else 1e-3 * args.deadline_ms,
        fallback=args.fallback or "continue",
        executes_infeasible=args.fallback is None,
    )
    words = language(setting)
    objective = words.objective(args.objective or "task()")
    limits = [words.constraint(text) for text in args.constraint]
    wanted = objective.subject_to(*limits) if limits else objective
    setting = replace(setting, objective=wanted, control=control)
    config = ActConfig(
        way=args.planner,
        distilled=None if args.policy is None else Distilled.load(args.policy, setting),
        is_supervised=args.supervise,
        healthy=None if args.watch_drift is None else Trajectories.load(args.watch_drift),
        step_s=None if args.step_ms is None else 1e-3 * args.step_ms,
        num_guesses=args.speculate,
        adapts_after=args.adapt_after,
    )
    env = None if args.defect is None else damaged(setting.task, args.defect)(args.episodes)
    acted = act_episodes(setting, config, num_episodes=args.episodes, seed=args.seed, env=env)
    episodes, facts = acted.episodes, acted.facts
    found = facts | {
        "returns": episodes.returns.tolist(),
        "mean_return": float(episodes.returns.mean()),
        "plan_cpu_ms": 1e3 * acted.cpu_seconds / episodes.num_steps,
        "mean_late_state": _late_means(episodes),
    }
    write_line(f"return by the task's own reward {found['mean_return']:.3f} over {args.episodes} episodes")
    write_line("second half, mean of " + ", ".join(f"{name} {x:.3f}" for name, x in found["mean_late_state"].items()))
    write_line(f"{found['plan_cpu_ms']:.2f} CPU ms for a step; {facts['num_failed']} plans failed")
    if facts["num_failed"]:
        write_line(f"the last failure: {facts['last_error']}")
    if args.step_ms is not None:
        write_line(f"{facts['num_late']} of {args.episodes} x {setting.task.num_steps} steps had no new plan in time")
    if args.deadline_ms is not None:
        write_line(f"deadline: {facts['num_cut_short']} plans were cut short, {facts['num_late']} came late")
    if limits and "num_infeasible" in facts:
        instead = "least bad plan" if args.fallback is None else f"fallback, {args.fallback},"
        write_line(
            f"limits: in {facts['num_infeasible']} of {episodes.num_steps} steps no plan kept them, and the {instead} "
            "acted"
        )
    if "speculation" in facts:
        write_line(_ahead_line(facts["speculation"]))
    if "planned_share" in facts:
        write_line(f"{facts['planned_share']:.1%} of the steps were planned, the policy acted in the others")
    if "alarms" in facts:
        steps = [step for step in facts["alarms"] if step is not None]
        when = f", at step {sorted(steps)[len(steps) // 2]} in the median" if steps else ""
        write_line(f"drift: an alarm in {len(steps)} of {args.episodes} episodes{when}")
    if "adapted_at" in facts:
        at = facts["adapted_at"]
        write_line("tuned dynamics: not needed" if at is None else f"tuned dynamics took over at step {at}")
    if args.record is not None:
        episodes.save(args.record)
        write_line(f"wrote {args.record}")
    if args.render is not None:
        render_episode(
            setting.bundle, args.render, way=args.planner, objective=wanted, title=args.objective, seed=args.seed
        )
        write_line(f"wrote {args.render}")
    if args.plot is not None:
        draw_predictions(setting.bundle, episodes, args.plot, healthy=config.healthy)
        write_line(f"wrote {args.plot}")
    if args.json is not None:
        write_json(args.json, found)
    return 0


def _ahead_line(found: "Mapping[str, Any]") -> str:
    hit, miss = ("none" if found[name] is None else f"{found[name]:.2f} ms" for name in ("hit_ms", "miss_ms"))
    return f"plans made ahead: {found['hit_rate']:.0%} hits; observation to action {hit} on a hit, {miss} on a miss"


def _late_means(episodes: "Trajectories") -> dict[str, float]:
    import numpy as np

    late = np.concatenate([episode.states[len(episode.states) // 2 :] for episode in episodes.episodes])
    return dict(zip(episodes.state_names, late.mean(axis=0).tolist(), strict=True))
