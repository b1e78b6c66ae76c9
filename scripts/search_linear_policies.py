"""Search the linear policies that a task's data comes from, and write them into the package.

Goes on from what is there: run it again for better policies. Of all that it meets, :data:`NUM_KEPT` are kept whose
returns are spread evenly from idle to the best. Walker2d's come from::

    scripts/search_linear_policies.py walker2d --fresh --coarse --iterations 420
    scripts/search_linear_policies.py walker2d --iterations 12
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from forerun.envs import control_halfcheetah, control_walker2d
from forerun.envs.control_ars import ArsConfig, LinearPolicy, load_policies, search_linear_policies
from forerun.envs.control_env import BatchEnv

FOLDER = Path(__file__).parents[1] / "src" / "forerun" / "envs"
DIGITS = 5
NUM_KEPT = 40


def halfcheetahs(num_envs: int, is_coarse: bool) -> BatchEnv:
    """Return the environments of a step of the search; the task's own integrator is Euler's."""
    return control_halfcheetah.make_env(num_envs)


def walkers(num_envs: int, is_coarse: bool) -> BatchEnv:
    """Return the environments of a step of the search."""
    return control_walker2d.make_batch(num_envs, is_coarse=is_coarse)


SEARCHES: dict[str, tuple[Callable[[int, bool], BatchEnv], ArsConfig]] = {
    "halfcheetah": (
        halfcheetahs,
        ArsConfig(num_directions=16, num_top=4, num_env_steps=control_halfcheetah.NUM_STEPS),
    ),
    "walker2d": (
        walkers,
        ArsConfig(
            num_directions=24,
            num_top=12,
            step_size=0.03,
            noise_std=0.025,
            num_env_steps=control_walker2d.NUM_STEPS,
            survival_reward=control_walker2d.SURVIVAL_REWARD,
        ),
    ),
}


def record(policy: LinearPolicy) -> dict:
    """Return a policy as JSON types, rounded."""
    numbers = {name: np.round(getattr(policy, name), DIGITS).tolist() for name in ("weights", "mean", "std")}
    return numbers | {"trial_return": round(policy.trial_return, 2), "num_seen": policy.num_seen}


def spread(found: list[LinearPolicy]) -> list[LinearPolicy]:
    """Return policies whose returns are spread evenly, in the order of the search; the last one, to go on from."""
    returns = np.array([policy.trial_return for policy in found])
    nearest = {int(np.abs(returns - wanted).argmin()) for wanted in np.linspace(returns.min(), returns.max(), NUM_KEPT)}
    return [found[place] for place in sorted(nearest | {len(found) - 1})]


def main() -> None:
    """Search, and write the file after every tenth step and at the end."""
    parser = argparse.ArgumentParser(description="Search linear policies of growing skill for a task.")
    parser.add_argument("task", choices=SEARCHES)
    parser.add_argument("--iterations", type=int, default=60, help="steps of the search")
    parser.add_argument("--fresh", action="store_true", help="begin from idleness, not from what is there")
    parser.add_argument("--coarse", action="store_true", help="step by Euler's method: a quarter of the time")
    parser.add_argument("--seed", type=int, default=0, help="of a fresh search")
    args = parser.parse_args()
    make, config = SEARCHES[args.task]
    target = FOLDER / f"{args.task}_policies.json"
    known = [] if args.fresh else list(load_policies(target.name))
    found = known[:-1]
    config = replace(config, num_iterations=args.iterations, seed=known[-1].num_seen if known else args.seed)
    env = make(2 * config.num_directions, args.coarse)
    for policy in search_linear_policies(env, config, start=known[-1] if known else None):
        found.append(policy)
        print(
            f"{len(found)}  mean return of {config.num_env_steps} steps {policy.trial_return:.1f}, "
            f"{policy.num_seen} steps seen, {time.process_time():.0f} CPU s",
            flush=True,
        )
        if len(found) % 10 == 0 or len(found) == len(known[:-1]) + args.iterations:
            about = f"linear policies found by augmented random search on {args.task}, in the order of the search"
            text = json.dumps({"about": about, "policies": [record(one) for one in spread(found)]})
            target.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
