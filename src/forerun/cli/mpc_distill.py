"""``forerun mpc distill``: a policy that answers at once what a planner would have planned."""

import argparse
from pathlib import Path

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_json_option, add_number, add_threads_option
from forerun.cli.progress import progress_bars

_EPILOG = """\
example:
  forerun mpc distill --models models --out policy
  forerun mpc plan --models models --policy policy --supervise
"""


def add_distill(actions: Commands) -> None:
    """Add the action."""
    parser = actions.add_parser(
        "distill",
        help="teach a small policy what the planner does",
        description="DAgger: the policy acts, the planner says what it would have done there, the policy learns it. "
        "Then planner, policy, and the policy with the planner as its supervisor are compared on the same starts.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="from train or adapt")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for the policy")
    parser.add_argument("--planner", default="ssr", metavar="NAME", help="who teaches (default: ssr)")
    add_number(parser, "--rounds", 4, "of DAgger")
    add_number(parser, "--episodes", 16, "of a round")
    add_number(parser, "--steps", 800, "optimiser steps after each round")
    add_number(parser, "--samples", 64, "candidates of a plan")
    add_number(parser, "--evaluate", 20, "episodes to compare on")
    add_number(parser, "--seed", 0, "of starts, plans and weights")
    add_threads_option(parser)
    add_json_option(parser)
    parser.set_defaults(action=_distill)


def _distill(args: argparse.Namespace) -> int:
    import torch

    from forerun.recipes.mpc.contenders import opened
    from forerun.recipes.mpc.distill import DistillConfig, distill, distill_record, measure_distilled

    torch.set_num_threads(args.threads)
    setting = opened(args.models, num_samples=args.samples)
    config = DistillConfig(
        num_rounds=args.rounds, num_episodes=args.episodes, num_train_steps=args.steps, seed=args.seed
    )
    with progress_bars() as show:
        distilled = distill(setting, config=config, way=args.planner, report=show)
    found = measure_distilled(setting, distilled, way=args.planner, num_episodes=args.evaluate, seed=args.seed)
    distilled.save(args.out, record=distill_record(config, args.planner) | {"measured": found})
    for name, row in found.items():
        ahead = row["planner_ahead"]
        interval = f"{ahead['value']:.3f} [{ahead['low']:.3f}, {ahead['high']:.3f}]"
        write_line(
            f"{name:<11} return {row['mean_return']:>10.3f}, planner ahead by {interval}, {row['cpu_ms']:.3f} CPU ms a "
            f"step, {row['planned_share']:.1%} of the steps planned"
        )
    write_line(f"wrote {args.out}; act with: forerun mpc plan --models {args.models} --policy {args.out} --supervise")
    if args.json is not None:
        write_json(args.json, {"round_returns": list(distilled.round_returns), "measured": found})
    return 0
