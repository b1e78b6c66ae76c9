"""Search the linear policies that a task's data comes from, and write them into the package.

Goes on from what is there: run it again for better policies. Of all that it meets, :data:`NUM_KEPT` are kept whose
returns are spread evenly from idle to the best. ``scripts/search_linear_policies.py halfcheetah|walker2d [ITERATIONS]``
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from forerun.envs import control_halfcheetah, control_walker2d
from forerun.envs.control_ars import ArsConfig, LinearPolicy, load_policies, search_linear_policies

FOLDER = Path(__file__).parents[1] / "src" / "forerun" / "envs"
DIGITS = 5
NUM_KEPT = 40
SEARCHES = {
    "halfcheetah": (
        control_halfcheetah.make_one,
        ArsConfig(num_directions=16, num_top=4, num_env_steps=control_halfcheetah.NUM_STEPS),
    ),
    "walker2d": (
        control_walker2d.make_one,
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
    """Search, and write the file after every step."""
    name = sys.argv[1]
    make, config = SEARCHES[name]
    num_iterations = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    target = FOLDER / f"{name}_policies.json"
    known = list(load_policies(target.name)) if target.exists() else []
    found = known[:-1]
    config = replace(config, num_iterations=num_iterations, seed=known[-1].num_seen if known else 0)
    for policy in search_linear_policies(lambda: make().unwrapped, config, start=known[-1] if known else None):
        found.append(policy)
        print(
            f"{len(found)}  mean return of {config.num_env_steps} steps {policy.trial_return:.1f}, "
            f"{policy.num_seen} steps seen, {time.process_time():.0f} CPU s",
            flush=True,
        )
        about = f"linear policies found by augmented random search on {name}, in the order of the search"
        target.write_text(json.dumps({"about": about, "policies": [record(one) for one in spread(found)]}) + "\n")


if __name__ == "__main__":
    main()
