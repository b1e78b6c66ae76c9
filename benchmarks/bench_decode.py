"""The decoding benchmark with the repository's prompts, peers and result files; options as `forerun bench decode`.

    python benchmarks/bench_decode.py --quick
    python benchmarks/bench_decode.py --llama-python PATH

The full run writes benchmarks/results/decode.{json,jsonl,png}; the quick one runs/bench_decode_quick.{json,jsonl}. The
protocol is in benchmarks/README.md.
"""

import sys
from pathlib import Path

from forerun.cli.main import main

_FOLDER = Path(__file__).resolve().parent


def arguments(given: list[str]) -> list[str]:
    """Return the command line of a run: the repository's files, then what was given, which wins."""
    if "--quick" in given:
        runs = _FOLDER.parent / "runs"
        runs.mkdir(exist_ok=True)
        stem, plot = runs / "bench_decode_quick", []
        if "--resume" not in given:
            stem.with_suffix(".jsonl").unlink(missing_ok=True)
    else:
        stem = _FOLDER / "results" / "decode"
        plot = ["--plot", f"{stem}.png"]
    files = ["--prompts", f"{_FOLDER / 'prompts.jsonl'}", "--peers", f"{_FOLDER / 'peers'}"]
    results = ["--json", f"{stem}.json", "--measurements", f"{stem}.jsonl"]
    return ["bench", "decode", *files, *results, *plot, *given]


if __name__ == "__main__":
    sys.exit(main(arguments(sys.argv[1:])))
