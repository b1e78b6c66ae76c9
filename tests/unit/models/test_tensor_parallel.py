"""A model shared by several: the law and the tokens of one, by threads, and by processes that a command starts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated.byte_model import save_byte_model
from simulated.parallel import ThreadCollective, led_by_first

from forerun import LLM, SamplingParams
from forerun.cli.main import main
from forerun.core.errors import ConfigError, DeviceError
from forerun.core.rows import Rows
from forerun.core.selection import Choice, Selection
from forerun.models.config import DecoderConfig
from forerun.models.decoder_weights import fill_decoder
from forerun.models.device_runner import DeviceRunner
from forerun.models.layout import parameter_shapes
from forerun.models.model_share import ModelSplit
from forerun.models.tensor_parallel import TensorParallelRunner
from forerun.models.weight_format import load_decoder

CONFIG = DecoderConfig(
    family="qwen2", vocab_size=31, hidden_size=32, intermediate_size=384, num_layers=2, num_heads=6, num_kv_heads=3,
    head_dim=32, max_len=64, attention_bias=True, tie_embeddings=True,
)  # fmt: skip
CACHE = {"num_sequences": 2, "capacity": 40}


def weights(config: DecoderConfig = CONFIG) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {
        name: (rng.standard_normal(shape) * (1.5 / shape[-1] ** 0.5)).astype(np.float32)
        for name, shape in parameter_shapes(config).items()
    }


def shared(*, parts=(2, 1), dtype="float32", config=CONFIG):
    def share(collective: ThreadCollective) -> TensorParallelRunner:
        return TensorParallelRunner(
            ModelSplit.of(config, parts),
            weights(config).__getitem__,
            lambda decoder, head: DeviceRunner(decoder, head=head, **CACHE),
            collective=collective,
            dtype=dtype,
        )

    return led_by_first(share, size=len(parts))


def test_unequal_shares_compute_what_one_process_does():
    runner, whole = shared(), DeviceRunner(fill_decoder(CONFIG, weights().__getitem__), **CACHE)
    texts = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 20)).tolist()

    def agree(rows: Rows, **options) -> None:
        np.testing.assert_allclose(runner.forward(rows, **options), whole.forward(rows, **options), atol=5e-5, rtol=0)

    agree(Rows.chains([(0, 0, texts[0]), (1, 0, texts[1])]))
    agree(Rows.chains([(0, 20, [3, 4])]), logit_rows=np.array([1]))
    states = [some.read_states(0, 2, 7, layer_ids=[1, 0]) for some in (runner, whole)]
    np.testing.assert_allclose(*states, atol=5e-5, rtol=0)
    for some in (runner, whole):
        some.write_states(1, 2, states[0][:, ::-1].copy())
    agree(Rows.chains([(1, 7, [8, 9])]))


def test_every_share_chooses_the_token_that_one_process_chooses():
    """In passes that are recorded and in long ones; greedy, noisy and truncated rows together."""
    runner, whole = shared(), DeviceRunner(fill_decoder(CONFIG, weights().__getitem__), **CACHE)
    choices = [Choice(temperature=1.1, seed=3, request=0, top_k=9, top_p=0.8), Choice(temperature=0, seed=0, request=1)]
    for width in (3, 35):
        parts = [np.random.default_rng(width + place).integers(0, 31, width).tolist() for place in range(2)]
        rows = Rows.chains([(place, 0, tokens) for place, tokens in enumerate(parts)])
        selection = Selection.of_positions([(choice, 5, width) for choice in choices])
        found = [some.forward_ids(rows, selection).tolist() for some in (runner, whole)]
        assert found[0] == found[1]
    assert len(set(found[0])) > 5


@pytest.mark.parametrize("dtype", ["float8", "int4"])
def test_shares_in_narrow_formats_are_near_the_whole(dtype):
    """Scales are over a part of the inputs, so that rounding differs; a share of other inputs would be far off."""
    config = replace(CONFIG, hidden_size=64, num_kv_heads=2, num_heads=4)
    runner = shared(parts=(1, 1), dtype=dtype, config=config)
    decoder = load_decoder(config, weights(config).__getitem__, dtype=dtype, device=torch.device("cpu"))
    rows = Rows.chains([(0, 0, list(range(12)))])
    error, expected = runner.forward(rows), DeviceRunner(decoder, **CACHE).forward(rows)
    error -= expected
    assert error.std() < 0.2 * expected.std()


def test_shares_put_together_are_the_whole():
    split = ModelSplit.of(CONFIG, (2, 1, 1))
    assert (split.num_kv_heads, split.num_inner) == ((1, 1, 1), (192, 96, 96))
    split = ModelSplit.of(CONFIG, (2, 1))
    assert (split.num_kv_heads, split.num_inner, split.columns(31)) == ((2, 1), (256, 128), (21, 10))
    for name, values in weights().items():
        shares = [split.share_tensor(name, values, rank=rank) for rank in range(2)]
        if "proj" not in name:
            assert all(part is values for part in shares)
            continue
        axis = 1 if "o_proj" in name or "down_proj" in name else 0
        np.testing.assert_array_equal(np.concatenate(shares, axis=axis), values)
        assert shares[0].shape[axis] == 2 * shares[1].shape[axis]


def test_what_leaves_a_process_with_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"num_kv_heads: 3 can't be shared by 4 processes"):
        ModelSplit.of(CONFIG, (1, 1, 1, 1))
    with pytest.raises(ConfigError, match="parts nearer to each other"):
        ModelSplit.of(CONFIG, (9, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel": 0}, "tensor_parallel=0: must be >= 1"),
        ({"tensor_parallel": 2, "tensor_parallel_parts": (1, 0)}, r"tensor_parallel_parts=\(1, 0\): must be 2 whole"),
        ({"tensor_parallel_parts": (1, 1)}, "must be 1 whole numbers"),
        ({"tensor_parallel": 3}, "num_kv_heads: 2 can't be shared by 3 processes"),
        ({"tensor_parallel": 2, "dtype": "int8"}, 'dtype="int8"'),
        ({"tensor_parallel": 2, "dtype": "int4"}, "in the share of process 0"),
    ],
)
def test_what_processes_can_not_share_is_refused_before_any_is_started(model, options, message):
    with pytest.raises(ConfigError, match=message):
        LLM(model, draft=None, max_model_len=64, **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    save_byte_model(directory)
    return str(directory)


def test_a_command_with_two_processes_writes_the_tokens_of_one(model, tmp_path):
    def tokens(name: str, *options: str) -> list[int]:
        file = tmp_path / name
        common = ["--target", model, "--draft", "self", "--dtype", "float32", "--max-model-len", "128", "--raw"]
        sampling = ["--temperature", "9", "--top-p", "0.95", "--seed", "4", "--max-tokens", "24", "--ignore-eos"]
        assert main(["generate", "The sea", *common, *sampling, *options, "--json", str(file)]) == 0
        return json.loads(file.read_text())["token_ids"]

    alone = tokens("one.json", "--method", "none")
    assert len(set(alone)) > 8
    assert tokens("two.json", "--method", "ssd", "--tensor-parallel", "2") == alone


def test_a_process_that_dies_is_an_error_and_not_a_wait(model):
    with LLM(model, draft=None, method="none", dtype="float32", max_model_len=64, tensor_parallel=2) as llm:
        params = SamplingParams(temperature=0, max_tokens=4)
        assert len(llm.generate("One", params)[0].token_ids) == 4
        shared_model = llm._resources.target
        shared_model._processes[0].kill()
        shared_model._processes[0].wait()
        with pytest.raises(DeviceError, match="process 1 of the model ended"):
            llm.generate("Two", params)
