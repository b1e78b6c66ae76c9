"""What `forerun certify` reaches on its tasks; writes benchmarks/results/certificates.json.

    python benchmarks/bench_certificates.py --fashion DIR [--tasks digits mnist1d fashion-mnist ...] [--out FILE]

Each task is one command as a user gives it, then `forerun verify` in a process of its own; both are measured in CPU
seconds, which other work on the machine changes little. A task's record is written as soon as it is there, and a task
that has one is left out on the next call: delete the file to begin anew.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from forerun.bounds.certificate import read_manifest
from forerun.core.env import cpu_info, package_versions

START = "import sys; from forerun.cli.main import main; sys.exit(main())"
BARS = {"digits": 0.33, "mnist1d": 0.48, "fashion-mnist": 0.20}
NETWORKS = "forerun.bounds.module.digits_network"
MODULES = {"digits-module": f"{NETWORKS}:build", "digits-module-filters": f"{NETWORKS}:build_with_filters"}


def run_measured(command: list[str]) -> float:
    """Run a command of Forerun to its end; return the CPU seconds that it and its children took."""

    def seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = seconds()
    subprocess.run([sys.executable, "-c", START, *command], check=True)
    return seconds() - before


def commands_of(task: str, folder: str | None) -> tuple[list[str], list[str]]:
    """Return the arguments of both commands of a task, without files that they write."""
    if task in MODULES:
        module = ["--data", "digits", "--module", MODULES[task]]
        return [*module, "--input-shape", "1", "8", "8", "--num-train", "1500", "--seed", "0", "1"], module
    data = ["--data", str(folder)] if task == "fashion-mnist" else []
    return ["--task", task, *data], data or ["--data", task]


def measure_task(task: str, folder: str | None) -> dict:
    certify, verify = commands_of(task, folder)
    with tempfile.TemporaryDirectory() as scratch:
        certificate, numbers = Path(scratch) / "c.zip", Path(scratch) / "c.json"
        certify_s = run_measured(["certify", *certify, "--out", str(certificate), "--json", str(numbers)])
        verify_s = run_measured(["verify", str(certificate), *verify])
        result, manifest = json.loads(numbers.read_text()), read_manifest(certificate)
    shown = ["certify", *("DIR" if word == folder else word for word in certify)]
    bar = BARS.get(task)
    return {
        "command": " ".join(["forerun", *shown]), "seed": result["choices"]["seeds"],
        "data_sha256": manifest["data_sha256"], "certify_cpu_s": certify_s, "verify_cpu_s": verify_s,
        "versions": package_versions(("torch", "numpy")), "cpu": cpu_info().model_name, "load_average": os.getloadavg(),
        "bar": bar, "reached": None if bar is None else result["risk_bound"] <= bar, "result": result,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=(*BARS, *MODULES), default=[*BARS, *MODULES])
    parser.add_argument("--fashion", metavar="DIR", help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/certificates.json"))
    args = parser.parse_args()
    if "fashion-mnist" in args.tasks and args.fashion is None:
        parser.error("--tasks fashion-mnist needs --fashion DIR")
    records = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    for task in args.tasks:
        if task not in records:
            record = measure_task(task, args.fashion)
            records[task] = record
            args.out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
