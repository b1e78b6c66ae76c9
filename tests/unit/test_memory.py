"""Arrays take memory only as they are written."""

import platform
import subprocess
import sys

import numpy as np
import psutil
import pytest

from forerun.core.memory import release_free_memory, sparse_zeros


def test_zeros_can_be_written_and_read():
    zeros = sparse_zeros((3, 5))
    assert zeros.dtype == np.float32
    assert zeros.flags.writeable
    assert not zeros.any()
    zeros[1, 2] = 7
    assert zeros.sum() == 7


@pytest.mark.skipif(sys.platform != "linux", reason="how memory is counted differs")
def test_only_written_parts_take_memory():
    """100 arrays of 8 MiB with one number each: huge pages would take 200 MiB."""
    process = psutil.Process()
    release_free_memory()
    before = process.memory_info().rss
    arrays = [sparse_zeros((2 << 20,)) for _ in range(100)]
    for array in arrays:
        array[1 << 20] = 1
    assert process.memory_info().rss - before < 20 << 20
    assert sum(float(array[1 << 20]) for array in arrays) == 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has no such option")
def test_freed_memory_is_not_asked_for_again():
    """In a process of its own, for it is for life: 8 MiB that are taken again and again fault in once."""
    program = (
        "import ctypes, resource\n"
        "from forerun.core.memory import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(20):\n"
        "        block = bytearray(8 << 20)\n"
        "        block[::4096] = bytes(2048)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "before = faults()\n"
        "keep_freed_memory()\n"
        "faults()\n"
        "print(before, faults())\n"
    )
    command = [sys.executable, "-c", program]
    first, second = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert 20 * int(second) < int(first)
