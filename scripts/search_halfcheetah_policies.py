"""Search the linear policies that HalfCheetah's data comes from, and write them into the package.

Goes on from what is there: run it again for better policies. ``scripts/search_halfcheetah_policies.py [ITERATIONS]``
"""

import json
import sys
from pathlib import Path

import numpy as np

from forerun.envs.control_ars import ArsConfig, LinearPolicy, search_linear_policies
from forerun.envs.control_halfcheetah import linear_policies, make_one

TARGET = Path(__file__).parents[1] / "src" / "forerun" / "envs" / "halfcheetah_policies.json"
DIGITS = 5


def record(policy: LinearPolicy) -> dict:
    """Return a policy as JSON types, rounded."""
    numbers = {name: np.round(getattr(policy, name), DIGITS).tolist() for name in ("weights", "mean", "std")}
    return numbers | {"trial_return": round(policy.trial_return, 2), "num_seen": policy.num_seen}


def main() -> None:
    """Search, and write the file after every step."""
    num_iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    known = list(linear_policies()) if TARGET.exists() else []
    config = ArsConfig(num_iterations=num_iterations, num_directions=16, num_top=4, num_env_steps=250, seed=len(known))
    found = known[:-1]
    for policy in search_linear_policies(make_one, config, start=known[-1] if known else None):
        found.append(policy)
        print(f"{len(found)}  mean return of {config.num_env_steps} steps {policy.trial_return:.1f}", flush=True)
        about = "linear policies found by augmented random search on HalfCheetah-v5, in the order of the search"
        TARGET.write_text(json.dumps({"about": about, "policies": [record(one) for one in found]}) + "\n")


if __name__ == "__main__":
    main()
