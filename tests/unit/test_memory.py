"""Arrays take memory only as they are written."""

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
