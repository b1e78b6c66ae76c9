"""Time SIGReg with its gradient at the published size: the formula with autograd against rotation in closed form.

    python benchmarks/bench_sigreg.py --out benchmarks/results/sigreg.json

The two alternate in one process, after one round that does not count; CPU seconds of the process, medians over rounds.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from forerun.core.atomic_files import write_json_file
from forerun.core.env import cpu_info, package_versions
from forerun.worldmodels.jepa.sigreg import SigRegConfig, eager_statistic, sigreg_statistic

SHAPE = (4, 128, 1024)  # steps, batch, directions


def cpu_seconds(statistic: Callable[..., torch.Tensor], values: torch.Tensor) -> tuple[float, torch.Tensor]:
    leaf = values.clone().requires_grad_()
    began = time.process_time()
    statistic(leaf, SigRegConfig()).backward()
    seconds = time.process_time() - began
    assert leaf.grad is not None
    return seconds, leaf.grad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {"eager": [], "fast": []}
    difference = 0.0
    for number in range(args.rounds + 1):
        eager_s, eager = cpu_seconds(eager_statistic, values)
        fast_s, fast = cpu_seconds(sigreg_statistic, values)
        difference = float((eager - fast).abs().max() / eager.abs().max())
        if number > 0:
            seconds["eager"].append(eager_s)
            seconds["fast"].append(fast_s)
    ratios = [eager_s / fast_s for eager_s, fast_s in zip(seconds["eager"], seconds["fast"], strict=True)]
    result = {
        "shape": SHAPE,
        "cpu": cpu_info().model_name,
        "versions": package_versions(("forerun", "torch")),
        "median_cpu_s": {name: statistics.median(values) for name, values in seconds.items()},
        "median_ratio": statistics.median(ratios),
        "ratios": ratios,
        "largest_gradient_difference_over_largest_gradient": difference,
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if args.out is not None:
        write_json_file(args.out, result)


if __name__ == "__main__":
    main()
