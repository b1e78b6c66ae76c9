"""Our reading of quantised blocks against the ``gguf`` library's, bit for bit."""

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.nn.block_formats import BLOCK_BYTES, dequantize_blocks


@pytest.mark.parametrize("kind", BLOCK_BYTES)
@settings(max_examples=60, deadline=None)
@given(num_blocks=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
def test_values_are_those_of_the_library(kind, num_blocks, seed):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (num_blocks, BLOCK_BYTES[kind])).astype(np.uint8)
    num_halves = 2 if kind == "Q4_1" else 1
    halves = rng.standard_normal((num_blocks, num_halves)) * 10.0 ** rng.integers(-4, 4, (num_blocks, num_halves))
    blocks[:, : 2 * num_halves] = halves.astype(np.float16).view(np.uint8)
    raw = np.frombuffer(blocks.tobytes(), np.uint8)
    np.testing.assert_array_equal(
        dequantize_blocks(raw, kind), dequantize(raw[np.newaxis], GGMLQuantizationType[kind])[0]
    )
