"""Inflated models compute what the small ones do."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from forerun.core.errors import ConfigError
from forerun.models.config import DecoderConfig
from forerun.models.decoder_weights import fill_decoder
from forerun.models.inflation import InflatedTensors, Inflation, inflate, inflated_name, inflation_to, num_weights
from forerun.models.layout import parameter_shapes
from forerun.models.load import load_checkpoint

TINY = DecoderConfig(
    vocab_size=41, hidden_size=12, intermediate_size=20, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6,
    max_len=64,
)  # fmt: skip
FAMILIES = {
    "llama": TINY,
    "tied": replace(TINY, tie_embeddings=True),
    "qwen2": replace(TINY, family="qwen2", attention_bias=True),
    "qwen3": replace(TINY, family="qwen3", qk_norm=True),
}
SIZES = {
    "wider stream": Inflation(hidden_size=48),
    "wider stream, no power of four": Inflation(hidden_size=19),
    "wider MLP": Inflation(intermediate_size=33),
    "more heads": Inflation(num_kv_heads=5),
    "more layers": Inflation(num_layers=5),
    "all": Inflation(hidden_size=48, intermediate_size=70, num_layers=4, num_kv_heads=6),
}
CASES = [
    (family, sizes)
    for family, config in FAMILIES.items()
    for sizes, inflation in SIZES.items()
    if not (config.qk_norm and inflation.hidden_size)
]


def weights_of(config: DecoderConfig):
    """Random weights by name; norms' and biases' are not 1 and 0."""
    rng = np.random.default_rng(2)
    return {
        name: (rng.uniform(0.5, 1.5, shape) if len(shape) == 1 else rng.standard_normal(shape) * 0.4).astype(np.float32)
        for name, shape in parameter_shapes(config).items()
    }.__getitem__


def logits(config, tensor) -> torch.Tensor:
    decoder = fill_decoder(config, tensor, dtype=torch.float64)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, config.vocab_size, (2, 15)))
    with torch.inference_mode():
        return decoder(tokens)


@pytest.mark.parametrize(("family", "sizes"), CASES)
def test_the_law_stays_the_same(family, sizes):
    config, weights = FAMILIES[family], weights_of(FAMILIES[family])
    inflated = SIZES[sizes].apply(config)
    found = logits(inflated, InflatedTensors(weights, config, inflated).tensor)
    # A norm's weight is rescaled in float32; a power of four needs no rounding.
    atol = 1e-5 if inflated.hidden_size == 19 else 1e-12
    torch.testing.assert_close(found, logits(config, weights), atol=atol, rtol=0)


def test_new_weights_are_not_zeros_where_zeros_would_cost_less():
    config, inflated = TINY, SIZES["all"].apply(TINY)
    tensors = InflatedTensors(weights_of(config), config, inflated)
    shares = {
        name: np.count_nonzero(tensors.tensor(name)) / tensors.tensor(name).size
        for name in tensors.names()
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight"))
    }
    assert min(shares.values()) > 0.99


def test_the_control_a_norm_that_is_not_rescaled_changes_the_law():
    config, weights = TINY, weights_of(TINY)
    inflated = Inflation(hidden_size=48).apply(config)
    wrong = replace(inflated, norm_eps=config.norm_eps * 100)
    found = logits(wrong, InflatedTensors(weights, config, inflated).tensor)
    assert (found - logits(config, weights)).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["hidden_size", "intermediate_size", "num_layers", "num_kv_heads"])
def test_a_model_can_not_be_deflated(name):
    with pytest.raises(ConfigError, match=f"{name}=1: must be at least the model's"):
        Inflation(**{name: 1}).apply(TINY)


def test_a_wider_stream_is_refused_where_head_norms_share_its_epsilon():
    with pytest.raises(ConfigError, match=r"hidden_size=48: .* leave hidden_size out"):
        Inflation(hidden_size=48).apply(FAMILIES["qwen3"])
    inflated = inflation_to(FAMILIES["qwen3"], num_params=1e5).apply(FAMILIES["qwen3"])
    assert inflated.hidden_size == FAMILIES["qwen3"].hidden_size
    assert num_weights(inflated) == pytest.approx(1e5, rel=0.01)


@pytest.mark.parametrize(
    ("name", "found"), [("default", None), ("inflated:8e9:a:b", (8e9, "a:b")), ("inflated:250000:x", (250000.0, "x"))]
)
def test_names_of_inflated_models(name, found):
    assert inflated_name(name) == found


@pytest.mark.parametrize("name", ["inflated:8e9", "inflated:many:default", "inflated:-1:default", "inflated:8e9:"])
def test_half_a_name_is_refused(name):
    with pytest.raises(ConfigError, match="such as inflated:8e9:default"):
        inflated_name(name)


@pytest.mark.parametrize("num_params", [1e6, 1e9, 8e9, 7e10])
def test_a_number_of_weights_is_met(num_params):
    small = DecoderConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_layers=30, num_heads=9, num_kv_heads=3,
        head_dim=64, max_len=8192, tie_embeddings=True,
    )  # fmt: skip
    if num_params < num_weights(small):
        with pytest.raises(ConfigError, match="ask for more"):
            inflation_to(small, num_params=num_params)
        return
    inflated = inflation_to(small, num_params=num_params).apply(small)
    assert num_weights(inflated) == pytest.approx(num_params, rel=0.001)
    assert (inflated.num_layers, inflated.hidden_size) == (30, {1e9: 576, 8e9: 2304, 7e10: 9216}[num_params])
    assert inflated.num_heads * inflated.head_dim == inflated.hidden_size


@pytest.mark.model
def test_smollm2_inflated_has_its_law():
    """Slightly: a wider stream and one layer more; in float32, whose rounding the comparison allows for."""
    small = load_checkpoint("default")
    small = replace(small, config=replace(small.config, num_layers=4))  # of the thirty, or this would take a minute
    inflation = Inflation(hidden_size=600, num_layers=5, num_kv_heads=4)
    large = inflate(small, inflation)
    assert "inflated to" in large.source
    tokens = torch.tensor([[1, 504, 2988, 282, 260]])
    laws = []
    for checkpoint in (small, large):
        decoder = fill_decoder(checkpoint.config, checkpoint.tensors.tensor)
        with torch.inference_mode():
            laws.append(decoder(tokens).log_softmax(dim=-1))
    torch.testing.assert_close(laws[1], laws[0], atol=2e-3, rtol=0)


def test_an_ensemble_is_not_inflated():
    with pytest.raises(ConfigError, match="runs/five is an ensemble: inflate one of its members"):
        inflate(SimpleNamespace(ensemble=object(), source="runs/five"), Inflation(num_layers=9))
