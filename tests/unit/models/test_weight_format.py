"""Decoders with weights of 8 and 4 bits: what is rounded, what is not, what is refused, and what a pass reads."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from forerun.core.errors import ConfigError
from forerun.core.rows import Rows
from forerun.models.config import DecoderConfig
from forerun.models.decoder_weights import fill_decoder
from forerun.models.device_runner import DeviceRunner
from forerun.models.layout import parameter_shapes, projection_shapes
from forerun.models.torch_runner import TorchRunner
from forerun.models.weight_format import (
    bytes_per_pass_in,
    check_format,
    fitting_format,
    format_problem,
    layer_builder,
    load_decoder,
)
from forerun.nn.float8_linear import Float8Linear, round_to_float8
from forerun.nn.int4_linear import Int4Linear

CPU = torch.device("cpu")
CONFIG = DecoderConfig(
    family="qwen2", vocab_size=61, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=16, max_len=64, attention_bias=True, tie_embeddings=True,
)  # fmt: skip


def weights(config: DecoderConfig = CONFIG) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(6)
    return {
        name: (rng.standard_normal(shape) * (1.5 / shape[-1] ** 0.5)).astype(np.float32)
        for name, shape in parameter_shapes(config).items()
    }


def dequantized(dtype: str) -> dict[str, np.ndarray]:
    """The weights that the levels of each projection stand for."""
    build = layer_builder(dtype)
    assert build is not None
    whole = weights()
    for name in projection_shapes(CONFIG):
        values = torch.from_numpy(whole[name])
        layer = Int4Linear(values, kernel="widened") if dtype == "int4" else build(values)
        whole[name] = layer.dequantized().numpy()
    return whole


@pytest.mark.parametrize("dtype", ["float8", "int4"])
@pytest.mark.parametrize("kind", [TorchRunner, DeviceRunner])
def test_logits_are_those_of_the_float_model_with_the_weights_that_levels_stand_for(dtype, kind):
    """In float8 with the inputs of each projection rounded too, which is part of the format."""
    cache = {"num_sequences": 1, "capacity": 40}
    slow = fill_decoder(
        CONFIG,
        weights().__getitem__,
        build_layer=partial(Int4Linear if dtype == "int4" else Float8Linear, kernel="widened"),
    )
    narrow, fast = (
        kind(decoder, **cache)
        for decoder in (slow, load_decoder(CONFIG, weights().__getitem__, dtype=dtype, device=CPU))
    )
    plain = fill_decoder(CONFIG, dequantized(dtype).__getitem__)
    if dtype == "float8":

        def round_inputs(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            levels, scales = round_to_float8(rows)
            return (levels.float() * scales).view(inputs[0].shape)

        for layer in plain.layers:
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    module.register_forward_pre_hook(round_inputs)
    whole = TorchRunner(fill_decoder(CONFIG, weights().__getitem__), **cache)
    rows = Rows.chains([(0, 0, list(range(20)))])
    found, expected, unrounded = (runner.forward(rows) for runner in (narrow, TorchRunner(plain, **cache), whole))
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=0)
    assert 1e-3 < np.abs(found - unrounded).max() < 0.5 * unrounded.std()
    # The kernel for this device rounds rows to bfloat16 where the twin does not.
    assert np.abs(fast.forward(rows) - expected).max() < 0.05 * expected.std()


@pytest.mark.parametrize("dtype", ["float8", "int4"])
def test_embedding_head_norms_and_biases_stay_as_they_are(dtype):
    decoder = load_decoder(CONFIG, weights().__getitem__, dtype=dtype, device=CPU)
    for name, values in weights().items():
        if name not in projection_shapes(CONFIG):
            module, _, parameter = name.rpartition(".")
            found = getattr(decoder.get_submodule(module), parameter)
            np.testing.assert_array_equal(found.detach().numpy(), values)
    assert decoder.lm_head.weight is decoder.embed_tokens.weight


@pytest.mark.parametrize(
    ("dtype", "change", "message"),
    [
        ("float8", {"intermediate_size": 100}, r"layers.0.mlp.gate_proj.weight is 100 x 64, and both must be .* 16"),
        ("int4", {"hidden_size": 80}, r"q_proj.weight is 64 x 80; outputs must be a multiple of 16, inputs of 32"),
        ("int4", {"intermediate_size": 100}, "gate_proj.weight is 100 x 64"),
    ],
)
def test_shapes_that_a_format_can_not_have_are_refused(dtype, change, message):
    config = replace(CONFIG, **change)
    with pytest.raises(ConfigError, match=f'dtype="{dtype}": .*{message}.*choose "bfloat16"'):
        check_format(config, dtype, CPU)
    assert fitting_format(config, dtype, CPU) == "float32"
    assert fitting_format(CONFIG, dtype, CPU) == dtype


def test_int4_needs_a_gpu_with_the_kernel():
    problem = format_problem(CONFIG, "int4", capability=(7, 5))
    assert problem == "this GPU has compute capability 7.5, and the kernel needs 8.0"
    assert format_problem(CONFIG, "int4", capability=(8, 0)) is None
    assert format_problem(CONFIG, "float8", capability=(7, 5)) is None


def test_what_a_pass_reads_is_what_the_layers_hold():
    """Of each narrow layer its buffers, byte for byte; and the head in bfloat16."""
    head = 2 * CONFIG.vocab_size * CONFIG.hidden_size
    for dtype in ("float8", "int4"):
        held = 0
        for name, values in weights().items():
            if name in projection_shapes(CONFIG):
                rows = torch.from_numpy(values)
                build = layer_builder(dtype)
                assert build is not None
                layer = Int4Linear(rows, kernel="widened") if dtype == "int4" else build(rows)
                held += sum(buffer.numel() * buffer.element_size() for buffer in layer.buffers())
        assert bytes_per_pass_in(dtype, CONFIG) == head + held
    assert bytes_per_pass_in("bfloat16", CONFIG) * 2 == bytes_per_pass_in("float32", CONFIG)
