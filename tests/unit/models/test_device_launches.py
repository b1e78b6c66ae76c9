"""How many operations a pass of fixed shape takes: on a GPU each is a launch of some microseconds, recorded or not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from forerun.core.rows import Rows
from forerun.core.selection import Choice, Selection
from forerun.models.config import DecoderConfig
from forerun.models.decoder_weights import fill_decoder
from forerun.models.device_runner import DeviceRunner
from forerun.models.layout import parameter_shapes

CONFIG = DecoderConfig(
    vocab_size=61, hidden_size=32, intermediate_size=40, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8,
    max_len=256,
)  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts operations that compute or move something."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_view = func.is_view or func._schema.name in {"aten::_unsafe_view", "aten::empty", "aten::_reshape_alias"}
        if not is_view:
            self.names.append(func._schema.name)
        return result


def launches(num_layers: int, rows: Rows, **changes) -> list[str]:
    config = replace(CONFIG, num_layers=num_layers, **changes)
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in parameter_shapes(config).items()}
    runner = DeviceRunner(fill_decoder(config, weights.__getitem__, dtype=torch.bfloat16), num_sequences=2, capacity=64)
    selection = Selection.of_positions(
        [(Choice(temperature=0, seed=0, request=0), 9, 1) for _ in range(len(np.unique(rows.sequences)))]
    )
    last = np.append(np.flatnonzero(np.diff(rows.sequences)), len(rows) - 1)
    runner.launch(rows, selection, logit_rows=last).result()
    with Launches() as counted:
        runner.launch(rows, selection, logit_rows=last).result()
    return counted.names


@pytest.mark.parametrize("width", [1, 4])
def test_a_layer_takes_few_launches(width):
    """On a CPU, where a norm takes 8 operations that are one on a GPU; it was 99 and 104 before scores were joined."""
    rows = Rows.chains([(0, 8, [1] * width), (1, 8, [1] * width)])
    one, two = (launches(num_layers, rows) for num_layers in (1, 2))
    assert len(two) - len(one) <= 40
    assert len(one) <= 40 + 52


def test_a_tree_costs_little_more_than_a_chain():
    tree = Rows(
        sequences=np.zeros(3, np.int64), token_ids=np.array([1, 2, 3]), positions=np.array([8, 9, 9]),
        slots=np.array([20, 21, 22]), lengths=np.full(3, 8), ancestors=np.array([[20, 0], [20, 21], [20, 22]]),
        num_ancestors=np.array([1, 2, 2]),
    )  # fmt: skip
    one, two = (launches(num_layers, tree) for num_layers in (1, 2))
    assert len(two) - len(one) <= 40 + 7
