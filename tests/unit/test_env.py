"""Facts about the machine, read from texts as kernels write them, and from the machine the test runs on."""

import os
import subprocess
import sys

import pytest

from forerun.core.env import (
    ISA_FLAGS,
    available_cores,
    cpu_info,
    package_versions,
    parse_cpu_max,
    parse_cpuinfo,
    pin_process,
    spread_cores,
)
from forerun.core.errors import ConfigError


def cpuinfo_text(*, flags: str, topology: list[tuple[int, int]]) -> str:
    return "".join(
        f"processor\t: {core}\nmodel name\t: Example CPU\n"
        f"physical id\t: {package}\ncore id\t\t: {unit}\nflags\t\t: {flags}\n\n"
        for core, (package, unit) in enumerate(topology)
    )


def test_parse_cpuinfo_reads_name_flags_and_topology():
    info = parse_cpuinfo(cpuinfo_text(flags="fpu avx2 avx512_vnni amx_bf16", topology=[(0, 0), (0, 1), (0, 0), (1, 0)]))
    assert info.model_name == "Example CPU"
    assert info.num_physical_cores == 3
    assert {flag for flag, present in info.isa.items() if present} == {"avx2", "avx512_vnni", "amx_bf16"}
    assert tuple(info.isa) == ISA_FLAGS


@pytest.mark.parametrize(
    ("flags", "int8", "bfloat16"),
    [
        ("avx2", False, False),
        ("avx2 avx_vnni", True, False),
        ("avx512f avx512_vnni", True, False),
        ("avx512f avx512_bf16", False, True),
        ("amx_int8 amx_bf16", True, True),
    ],
)
def test_fast_formats_follow_from_the_flags(flags: str, int8: bool, bfloat16: bool):
    info = parse_cpuinfo(cpuinfo_text(flags=flags, topology=[(0, 0)]))
    assert (info.has_int8_dot, info.has_bfloat16) == (int8, bfloat16)


@pytest.mark.parametrize("text", ["", "processor : 0\nBogoMIPS : 50.00\nFeatures : fp asimd\n\n"])
def test_cpuinfo_without_topology_claims_none(text: str):
    info = parse_cpuinfo(text)
    assert info.model_name
    assert info.num_physical_cores == 0
    assert not any(info.isa.values())


@pytest.mark.parametrize(
    ("cores", "topology", "expected"),
    [
        ([0, 1, 2, 3], {0: (0, 0), 1: (0, 0), 2: (0, 1), 3: (0, 1)}, (0, 2, 1, 3)),
        ([3, 2, 1, 0], {0: (0, 0), 1: (0, 1), 2: (0, 0), 3: (0, 1)}, (0, 1, 2, 3)),
        ([0, 1, 2], {0: (0, 0), 1: (1, 0), 2: (0, 0)}, (0, 1, 2)),
        ([4, 7], {}, (4, 7)),
    ],
)
def test_spread_cores_puts_siblings_last(cores, topology, expected):
    assert spread_cores(cores, topology) == expected


@pytest.mark.parametrize(("text", "cores"), [("max 100000\n", None), ("150000 100000\n", 1.5), ("200000 100000", 2.0)])
def test_cpu_max(text: str, cores: float | None):
    assert parse_cpu_max(text) == cores


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity masks")
def test_available_cores_are_the_affinity_mask():
    assert set(available_cores()) == os.sched_getaffinity(0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot pin")
def test_pin_process_moves_threads_that_run_already():
    code = (
        "import os, threading\n"
        "from forerun.core.env import available_cores, pin_process\n"
        "stop, ready, ids = threading.Event(), threading.Event(), []\n"
        "def work():\n"
        "    ids.append(threading.get_native_id()); ready.set(); stop.wait()\n"
        "thread = threading.Thread(target=work); thread.start(); ready.wait()\n"
        "core = available_cores()[-1]\n"
        "assert pin_process(core) is True\n"
        "assert os.sched_getaffinity(0) == {core}\n"
        "assert os.sched_getaffinity(ids[0]) == {core}\n"
        "stop.set(); thread.join()\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot pin")
@pytest.mark.parametrize("cores", [(100_000,), (-1,), (), (0, 100_000)])
def test_pin_process_refuses_cores_it_does_not_have_and_changes_nothing(cores: tuple[int, ...]):
    before = os.sched_getaffinity(0)
    with pytest.raises(ConfigError, match=r"^cores=.*may use the cores"):
        pin_process(*cores)
    assert os.sched_getaffinity(0) == before


def test_cpu_info_of_this_machine_has_a_name():
    assert cpu_info().model_name


def test_package_versions_report_what_is_absent():
    assert package_versions(["pytest", "no-such-package-at-all"]) == {
        "pytest": pytest.__version__,
        "no-such-package-at-all": None,
    }
