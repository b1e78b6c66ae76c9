"""Which runner a model gets, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from forerun.core.env import CpuInfo, cpu_info
from forerun.core.errors import ConfigError
from forerun.core.rows import Rows
from forerun.models import runner as runner_module
from forerun.models.config import DecoderConfig
from forerun.models.int8_runner import Int8Runner
from forerun.models.layout import parameter_shapes
from forerun.models.runner import build_runner
from forerun.models.torch_runner import TorchRunner


def zeros(config: DecoderConfig):
    shapes = parameter_shapes(config)
    return lambda name: np.zeros(shapes[name], np.float32)


def build(config: DecoderConfig, **options):
    return build_runner(config, zeros(config), **({"dtype": "float32", "num_sequences": 1, "capacity": 32} | options))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float_weights_run_in_torch(tiny_config, dtype):
    runner = build(tiny_config, dtype=dtype)
    assert isinstance(runner, TorchRunner)
    assert runner.capacity == 32
    logits = runner.forward(Rows.chains([(0, 0, [1, 2])]))
    assert logits.dtype == np.float32
    assert logits.shape == (2, tiny_config.vocab_size)


def test_bfloat16_is_near_float32(tiny_config):
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape) / 4 for name, shape in parameter_shapes(tiny_config).items()}
    outputs = [
        build_runner(
            tiny_config, lambda name: weights[name].astype(np.float32), dtype=dtype, num_sequences=1, capacity=32
        ).forward(Rows.chains([(0, 0, [1, 2, 3])]))
        for dtype in ("float32", "bfloat16")
    ]
    assert 0 < np.abs(outputs[0] - outputs[1]).max() < 0.1 * np.abs(outputs[0]).max()


def test_a_window_is_refused_only_where_it_would_be_needed(tiny_config, monkeypatch):
    monkeypatch.setattr(runner_module, "cpu_info", has_vnni)
    config = replace(tiny_config, sliding_window=31)
    with pytest.raises(ConfigError, match=r"sliding_window=31 is shorter than the context of 32 tokens.*at most 31"):
        build(config, dtype="int8")
    assert isinstance(build(config, dtype="int8", capacity=31), Int8Runner)
    assert isinstance(build(config), TorchRunner)


def test_a_context_beyond_the_models_is_refused(tiny_config):
    with pytest.raises(ConfigError, match=r"capacity=65: the model was trained for up to 64 tokens"):
        build(tiny_config, capacity=65)


def test_int8_is_for_cpus_that_add_exactly(tiny_config, monkeypatch):
    monkeypatch.setattr(runner_module, "cpu_info", lambda: replace(has_vnni(), flags=frozenset({"avx2"})))
    with pytest.raises(ConfigError, match=r'dtype="int8": this CPU has neither VNNI nor AMX'):
        build(tiny_config, dtype="int8")
    with pytest.raises(ConfigError, match=r'dtype="int8": its kernels run on a CPU, not on cuda'):
        build(tiny_config, dtype="int8", device="cuda")


@pytest.mark.skipif(not cpu_info().has_int8_dot, reason="this CPU has no exact int8 products")
def test_rows_have_one_or_two_levels(tiny_config):
    with pytest.raises(ConfigError, match="num_levels=3: must be 1"):
        build(tiny_config, dtype="int8", num_levels=3)


def test_a_bfloat16_runner_holds_bfloat16(tiny_config):
    seen: list[torch.dtype] = []
    runner = build(tiny_config, dtype="bfloat16")
    hook = torch.nn.modules.module.register_module_forward_hook(lambda _, __, output: seen.append(output.dtype))
    try:
        runner.forward(Rows.chains([(0, 0, [1, 2])]))
    finally:
        hook.remove()
    assert set(seen) == {torch.bfloat16}


def has_vnni() -> CpuInfo:
    return CpuInfo(model_name="test", flags=frozenset({"avx512_vnni"}), physical_core_of={})
