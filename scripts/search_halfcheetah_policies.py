"""Search the linear policies that HalfCheetah's data comes from, and write them into the package.

Goes on from what is there: run it again for better policies. Of all that it meets, :data:`NUM_KEPT` are kept whose
returns are spread evenly from idle to the best. ``scripts/search_halfcheetah_policies.py [ITERATIONS]``
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from forerun.envs.control_ars import ArsConfig, LinearPolicy, search_linear_policies
from forerun.envs.control_halfcheetah import NUM_STEPS, linear_policies, make_one

TARGET = Path(__file__).parents[1] / "src" / "forerun" / "envs" / "halfcheetah_policies.json"
DIGITS = 5
NUM_KEPT = 40


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
    num_iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    known = list(linear_policies()) if TARGET.exists() else []
    config = ArsConfig(
        num_iterations=num_iterations, num_directions=16, num_top=4, num_env_steps=NUM_STEPS, seed=len(known)
    )
    found = known[:-1]
    for policy in search_linear_policies(make_one, config, start=known[-1] if known else None):
        found.append(policy)
        print(
            f"{len(found)}  mean return of {config.num_env_steps} steps {policy.trial_return:.1f}, "
            f"{time.process_time():.0f} CPU s",
            flush=True,
        )
        about = "linear policies found by augmented random search on HalfCheetah-v5, in the order of the search"
        kept = [record(one) for one in spread(found)]
        TARGET.write_text(json.dumps({"about": about, "policies": kept}) + "\n")


if __name__ == "__main__":
    main()
