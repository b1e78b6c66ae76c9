"""The engine on a GPU, with a target of the cost of 8 billion weights; options as `forerun bench gpu`.

    python benchmarks/gpu/bench_gpu.py
    python benchmarks/gpu/bench_gpu.py --batch-sizes 1 --dtype float8

Writes benchmarks/results/gpu.{json,png}. The protocol is in docs/gpu.md.
"""

import sys
from pathlib import Path

from forerun.cli.main import main

_STEM = Path(__file__).resolve().parents[1] / "results" / "gpu"
_MODELS = ["--device", "cuda", "--target", "inflated:8e9:default", "--draft", "inflated:1e9:default", "--peers"]
_SIZES = ["--batch-sizes", "1,4,16,32", "--contexts", "512,2048,8000"]


def arguments(given: list[str]) -> list[str]:
    """Return the command line of a run: models, sizes and files of the repository, then what was given, which wins."""
    return ["bench", "gpu", *_MODELS, *_SIZES, "--json", f"{_STEM}.json", "--plot", f"{_STEM}.png", *given]


if __name__ == "__main__":
    sys.exit(main(arguments(sys.argv[1:])))
