"""The machine: the cores this process may use, what its CPU can compute, and which packages are installed."""

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from forerun.core.errors import ConfigError

ISA_FLAGS: Final = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""The instruction sets that decide which kernels are fast, as Linux names them in /proc/cpuinfo."""

_CPUINFO: Final = Path("/proc/cpuinfo")
_CPU_MAX: Final = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuInfo:
    """What the operating system says about the processor.

    Attributes:
        model_name: The maker's name, or the architecture where there is none.
        flags: Every feature flag of the first core; empty where the system does not list them.
        physical_core_of: For each logical core its ``(package, core)``; logical cores that share one share its units.
    """

    model_name: str
    flags: frozenset[str]
    physical_core_of: Mapping[int, tuple[int, int]]

    @property
    def num_physical_cores(self) -> int:
        """Distinct physical cores; 0 where the system does not say."""
        return len(set(self.physical_core_of.values()))

    @property
    def isa(self) -> dict[str, bool]:
        """Each of :data:`ISA_FLAGS`, and whether this processor has it."""
        return {flag: flag in self.flags for flag in ISA_FLAGS}

    @property
    def has_int8_dot(self) -> bool:
        """Whether int8 products accumulate in 32 bits in one instruction (VNNI or AMX), so that sums never saturate."""
        return not self.flags.isdisjoint({"avx_vnni", "avx512_vnni", "amx_int8"})

    @property
    def has_bfloat16(self) -> bool:
        """Whether bfloat16 products run in hardware."""
        return not self.flags.isdisjoint({"avx512_bf16", "amx_bf16"})


def parse_cpuinfo(text: str) -> CpuInfo:
    """Read the text of Linux's /proc/cpuinfo.

    Args:
        text: One block of ``key : value`` lines for each logical core, blocks parted by empty lines.

    Returns:
        Name and flags of the first block; the core map holds the blocks that name their package and core.
    """
    blocks = [_fields(block) for block in text.split("\n\n") if block.strip()]
    first = blocks[0] if blocks else {}
    return CpuInfo(
        model_name=first.get("model name") or platform.machine(),
        flags=frozenset((first.get("flags") or first.get("Features") or "").split()),
        physical_core_of={
            int(block["processor"]): (int(block["physical id"]), int(block["core id"]))
            for block in blocks
            if {"processor", "physical id", "core id"} <= block.keys()
        },
    )


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu_info() -> CpuInfo:
    """Return what is known of this machine's processor; no flags where there is no /proc/cpuinfo."""
    return parse_cpuinfo(_CPUINFO.read_text() if _CPUINFO.is_file() else "")


def available_cores() -> tuple[int, ...]:
    """Return the logical cores this process may run on, those that share no physical core first.

    The first n are the best n to pin busy processes to: hyper-thread siblings come only after every physical core has
    given one.

    Returns:
        Logical core numbers of the affinity mask; all cores where the system has no such mask. Never empty.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
    else:
        allowed = list(range(os.cpu_count() or 1))
    return spread_cores(allowed, cpu_info().physical_core_of)


def spread_cores(cores: Iterable[int], physical_core_of: Mapping[int, tuple[int, int]]) -> tuple[int, ...]:
    """Order logical cores so that a prefix uses as many physical cores as it can.

    Args:
        cores: Logical cores.
        physical_core_of: Their ``(package, core)``; a core without an entry counts as a physical core of its own.

    Returns:
        The same cores: the first of each physical core, then the second of each, and so on; ties by number.
    """
    num_siblings_before: dict[tuple[int, int], int] = {}
    ranked: list[tuple[int, int]] = []
    for core in sorted(cores):
        physical = physical_core_of.get(core, (-1, core))
        rank = num_siblings_before.get(physical, 0)
        num_siblings_before[physical] = rank + 1
        ranked.append((rank, core))
    return tuple(core for _, core in sorted(ranked))


def cpu_quota_cores() -> float | None:
    """Return how many cores' worth of time a container may use (cgroup v2), or ``None`` where there is no limit."""
    return parse_cpu_max(_CPU_MAX.read_text()) if _CPU_MAX.is_file() else None


def parse_cpu_max(text: str) -> float | None:
    """Read cgroup v2's ``cpu.max``: quota and period in microseconds, or ``max`` for no limit."""
    quota, _, period = text.strip().partition(" ")
    return None if quota == "max" else int(quota) / int(period)


def pin_process(*cores: int) -> bool:
    """Let this process, with every thread it has now or starts later, run on the given cores only.

    Args:
        *cores: Logical core numbers, at least one.

    Returns:
        Whether it was done: ``False`` on a system that cannot pin (macOS, Windows).

    Raises:
        ConfigError: A core does not exist or is not this process's to use.

    Effects:
        Replaces the affinity mask of the process. Child processes inherit it.
    """
    if not hasattr(os, "sched_setaffinity"):
        return False
    before = os.sched_getaffinity(0)
    wanted = set(cores)
    try:
        os.sched_setaffinity(0, wanted)
        granted = os.sched_getaffinity(0)
    except (OSError, ValueError, OverflowError):
        granted = set[int]()
    if not wanted or granted != wanted:
        os.sched_setaffinity(0, before)
        raise ConfigError(
            f"cores={cores}: this process may use the cores {tuple(sorted(before))} only; name one or more of these"
        )
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), wanted)
        except ProcessLookupError:  # the thread ended meanwhile
            continue
    return True


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Return the installed version of each distribution, ``None`` for one that is not installed; imports none."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions
