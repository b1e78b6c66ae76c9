"""A model shared by several: the law and the tokens of one, by threads, and by processes that a command starts."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from simulated.byte_model import save_byte_model
from simulated.parallel import ThreadCollective, led_by_first

from forerun import LLM, SamplingParams, SpeculativeConfig
from forerun.cli.main import main
from forerun.core.errors import ConfigError, DeviceError, DeviceMemoryError
from forerun.core.rows import Rows
from forerun.core.selection import Choice, DraftedPart, Selection
from forerun.models.config import DecoderConfig
from forerun.models.decoder_weights import fill_decoder
from forerun.models.device_runner import DeviceRunner
from forerun.models.draft_laws import DraftLaws
from forerun.models.launched_share import Launch
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


def shared(*, parts=(2, 1), dtype="float32", config=CONFIG, into: list[TensorParallelRunner] | None = None):
    def share(collective: ThreadCollective) -> TensorParallelRunner:
        runner = TensorParallelRunner(
            ModelSplit.of(config, parts),
            weights(config).__getitem__,
            lambda decoder, **share: DeviceRunner(decoder, **share, **CACHE),
            collective=collective,
            dtype=dtype,
        )
        if into is not None:
            into.append(runner)
        return runner

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
        found = [some.launch(rows, selection).result().tolist() for some in (runner, whole)]
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


def short_of_memory(share, *, times: int):
    """Let an MLP of a share find too little memory so many times, the first of them in the middle of a pass."""
    left = [times]

    def check(_module, _inputs):
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("made up")

    share._own._static._decoder.layers[1].mlp.register_forward_pre_hook(check)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("width", [3, 35])
def test_a_pass_that_memory_is_too_short_for_in_one_process_is_repeated_by_all(rank, width):
    shares: list[TensorParallelRunner] = []
    runner, whole = shared(into=shares), DeviceRunner(fill_decoder(CONFIG, weights().__getitem__), **CACHE)
    short_of_memory(shares[rank], times=1)
    rows = Rows.chains([(0, 0, np.random.default_rng(0).integers(0, 31, width).tolist())])
    np.testing.assert_allclose(runner.forward(rows), whole.forward(rows), atol=5e-5, rtol=0)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_pass_that_does_not_fit_in_one_process_is_given_up_by_all_and_the_next_one_is_not(rank):
    shares: list[TensorParallelRunner] = []
    runner, whole = shared(into=shares), DeviceRunner(fill_decoder(CONFIG, weights().__getitem__), **CACHE)
    short_of_memory(shares[rank], times=2)
    rows = Rows.chains([(0, 0, [1, 2, 3])])
    with pytest.raises(DeviceMemoryError, match="set a smaller"):
        runner.forward(rows)
    np.testing.assert_allclose(runner.forward(rows), whole.forward(rows), atol=5e-5, rtol=0)


def test_drafts_are_verified_by_rejection_as_one_process_does():
    """By laws that lie beside the leading share alone, which decides; then by one-hot ones and without a draft."""
    runner, whole = shared(), DeviceRunner(fill_decoder(CONFIG, weights().__getitem__), **CACHE)
    rng = np.random.default_rng(5)
    scores = torch.from_numpy(rng.standard_normal((2, 3, 31)).astype(np.float32))
    choices = [Choice(temperature=4.0, seed=3, request=0), Choice(temperature=0, seed=0, request=1)]
    for some in (runner, whole):
        some.forward(Rows.chains([(0, 0, [1]), (1, 0, [2])]))  # recorded before there are any laws
        laws = DraftLaws(num_sequences=2, num_places=3, vocab_ids=None, vocab_size=31, recorder=some.recorder)
        some.verify_by(laws)
        laws.put([(0, scores[0]), (1, scores[1])], source=some.recorder)
    found: list[list[int]] = []
    for step, has_laws in enumerate([True, True, False]):
        drafts = rng.integers(0, 31, (2, 3)).tolist()
        start = 1 + 4 * step
        rows = Rows.chains([(place, start, [5, *draft]) for place, draft in enumerate(drafts)])
        parts = [
            DraftedPart(choice=choice, first_position=start + 1, token_ids=draft, has_laws=has_laws)
            for choice, draft in zip(choices, drafts, strict=True)
        ]
        tokens = [some.launch(rows, Selection.of_drafts(parts)).result().tolist() for some in (runner, whole)]
        assert tokens[0] == tokens[1]
        found.append(tokens[0])
    assert len({token for tokens in found for token in tokens}) > 5


def test_hidden_states_are_kept_by_the_leading_share_alone():
    """Each share has the whole residual stream; all of them record their passes anew, so that they stay in step."""
    runner, whole = shared(), DeviceRunner(fill_decoder(CONFIG, weights().__getitem__), **CACHE)
    for some in (runner, whole):
        some.forward(Rows.chains([(0, 0, [1])]))
        some.keep_features([1, 0])
        some.forward(Rows.chains([(0, 0, [4, 9, 2]), (1, 0, [7])]))
    kept = [some.read_features(0, 0, 3) for some in (runner, whole)]
    assert kept[1].shape == (3, 2, CONFIG.hidden_size)
    np.testing.assert_allclose(*kept, atol=5e-5, rtol=0)
    np.testing.assert_array_equal(runner.features(0, 1, 3).numpy(), kept[0][1:])
    runner.write_features(1, 0, kept[0][::-1].copy())
    np.testing.assert_array_equal(runner.read_features(1, 0, 3), kept[0][::-1])


def test_only_the_leading_process_chooses_tokens():
    shares: list[TensorParallelRunner] = []
    runner = shared(into=shares)
    answers: list[np.ndarray] = []
    own = shares[1]._own

    def watched(*args, **options):
        pending = DeviceRunner.launch(own, *args, **options)
        answers.append(pending.result())
        return pending

    own.launch = watched
    selection = Selection.of_positions([(Choice(temperature=1.0, seed=1, request=0), 1, 2)])
    assert runner.launch(Rows.chains([(0, 0, [3, 4])]), selection).result().any()
    runner.forward(Rows.chains([(0, 2, [3])]))  # the other has answered the call before
    chosen = [answer.tolist() for answer in answers if answer.dtype == np.int64]
    assert chosen == [[0, 0]]


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


def test_rejection_on_two_processes_is_that_on_one(model, tmp_path):
    """Drafts are drawn and verified with the numbers of a seed: the outputs are equal, and not those without drafts.

    The draft has only its own keys and values, as a target that processes share lends none.
    """
    save_byte_model(tmp_path, num_layers=3)
    speculative = SpeculativeConfig(verification="rejection", num_speculative_tokens=3)
    options = {
        "draft": str(tmp_path),
        "method": "ssd",
        "dtype": "float32",
        "max_model_len": 96,
        "speculative": speculative,
    }
    params = SamplingParams(temperature=6.0, seed=5, max_tokens=48, ignore_eos=True)
    found: list[tuple[int, ...]] = []
    for more in ({"graphs": "eager"}, {"tensor_parallel": 2}):
        with LLM(model, **options, **more) as llm:
            found.append(llm.generate("The sea", params)[0].token_ids)
            assert llm.last_metrics.num_proposed > 5
            assert 0 < llm.last_metrics.acceptance_rate < 1
    assert found[0] == found[1]
    assert len(set(found[0])) > 8


def test_processes_that_a_launcher_starts_write_the_tokens_of_one(model, tmp_path):
    """Two processes with the variables of torchrun, which all run one command; the second one ends with the first."""
    options = ["--target", model, "--draft", "self", "--dtype", "float32", "--max-model-len", "96", "--raw"]
    options += ["--max-tokens", "16", "--ignore-eos", "--method", "sequential", "--temperature", "9", "--seed", "2"]
    command = ["generate", "The sea", *options]
    alone, shared_file = tmp_path / "one.json", tmp_path / "two.json"
    assert main([*command, "--json", str(alone)]) == 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [Path(sys.executable).with_name("forerun"), *command, "--tensor-parallel", "2", "--json", str(shared_file)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert said[1][0] == b""  # only the first writes
    assert json.loads(shared_file.read_text())["token_ids"] == json.loads(alone.read_text())["token_ids"]


def test_what_a_launcher_says_is_read_and_checked(model, monkeypatch):
    said = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "there", "MASTER_PORT": "1"}
    assert Launch.of(said) == Launch(rank=3, local_rank=1, size=4)
    assert Launch.of(said | {"WORLD_SIZE": "1"}) is None
    assert Launch.of({name: value for name, value in said.items() if name != "MASTER_PORT"}) is None
    with pytest.raises(ConfigError, match=r"RANK=first.*must be whole numbers"):
        Launch.of(said | {"RANK": "first"})
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"tensor_parallel=2: 4 processes were started"):
        LLM(model, draft=None, method="none", dtype="float32", max_model_len=64, tensor_parallel=2)


def test_a_process_that_dies_is_an_error_and_not_a_wait(model):
    with LLM(model, draft=None, method="none", dtype="float32", max_model_len=64, tensor_parallel=2) as llm:
        params = SamplingParams(temperature=0, max_tokens=4)
        assert len(llm.generate("One", params)[0].token_ids) == 4
        shared_model = llm._resources.target
        shared_model._processes[0].kill()
        shared_model._processes[0].wait()
        with pytest.raises(DeviceError, match="process 1 of the model ended"):
            llm.generate("Two", params)
