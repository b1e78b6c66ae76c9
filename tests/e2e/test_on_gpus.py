"""The engine on GPUs as users start it, against the CPU; the CPU's twin of it runs everywhere."""

import json
from typing import Any

import pytest
import torch
from simulated.byte_model import save_byte_model

from forerun import LLM, SamplingParams, SpeculativeConfig
from forerun.cli.main import main

PROMPTS = ["The sea is calm, the sea is calm, the sea", "O", "abcabcabcabc", "The sea is calm, but"]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=24),
    SamplingParams(temperature=0.8, max_tokens=24, seed=3),
    SamplingParams(temperature=1.0, top_k=20, max_tokens=16, seed=4, logprobs=1),
    SamplingParams(temperature=1.2, top_p=0.9, max_tokens=24, seed=5),
]
TWIN = pytest.param(0, {"graphs": "eager"}, id="the CPU's twin")
TWIN_WITH_COPIES = pytest.param(0, {"graphs": "eager", "draft_data_parallel": 2}, id="the twin, two drafts")


def on_gpus(num_gpus: int, name: str, **options: Any):
    """Options for so many GPUs."""
    return pytest.param(num_gpus, {"device": "cuda", **options}, id=name, marks=pytest.mark.gpu)


ALIKE = [
    TWIN,
    TWIN_WITH_COPIES,
    on_gpus(1, "one GPU"),
    on_gpus(1, "without graphs", graphs="eager"),
    on_gpus(1, "multiprocessors set apart", draft_sm_share=0.25),
    on_gpus(1, "FlexAttention", attention="flex"),
    on_gpus(2, "a GPU for the draft", draft_device="cuda:1"),
    on_gpus(3, "two GPUs for copies of the draft", draft_device="cuda:1", draft_data_parallel=2),
    on_gpus(2, "a target that two processes share", tensor_parallel=2),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("model")
    save_byte_model(directory, head_dim=16)
    return str(directory)


def tokens(model: str, **options: Any) -> list[Any]:
    with LLM(model, dtype="float32", draft="self", max_model_len=128, max_num_seqs=2, **options) as llm:
        return [completion.token_ids for completion in llm.generate(PROMPTS, PARAMS)]


def need_gpus(count: int) -> None:
    if count > torch.cuda.device_count():
        pytest.skip(f"needs {count} CUDA devices")


@pytest.mark.parametrize(("num_gpus", "options"), ALIKE)
def test_every_method_writes_what_the_cpu_does(model, num_gpus, options):
    need_gpus(num_gpus)
    expected = tokens(model, method="none")
    for method in ("none", "sequential", "ssd", "auto"):
        if method in {"ssd", "auto"} or "draft_data_parallel" not in options:
            assert tokens(model, method=method, **options) == expected, method


@pytest.mark.parametrize(("num_gpus", "options"), [TWIN_WITH_COPIES, ALIKE[2], ALIKE[6], ALIKE[7]])
def test_rejection_draws_what_the_twin_does(model, num_gpus, options):
    need_gpus(num_gpus)
    speculative = SpeculativeConfig(verification="rejection", num_speculative_tokens=3, branch_budget=20)
    twin = tokens(model, method="ssd", graphs="eager", speculative=speculative)
    assert tokens(model, method="ssd", speculative=speculative, **options) == twin


@pytest.mark.parametrize("dtype", ["bfloat16", "float8", "int4"])
@pytest.mark.parametrize(("num_gpus", "device"), [(0, "cpu"), pytest.param(1, "cuda", marks=pytest.mark.gpu)])
def test_narrow_weights_write_as_much(model, num_gpus, device, dtype):
    """Rounding may part methods where tokens are nearly tied, so only that they go on to the end."""
    need_gpus(num_gpus)
    options = {"graphs": "eager"} if device == "cpu" else {"device": device}
    with LLM(model, dtype=dtype, draft="self", method="ssd", max_model_len=128, **options) as llm:
        completions = llm.generate(PROMPTS, [SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)] * 4)
        assert [len(completion.token_ids) for completion in completions] == [24] * 4
        assert llm.last_metrics.num_proposed > 0


@pytest.mark.parametrize(
    ("num_gpus", "where"),
    [
        pytest.param(0, ["--device", "cpu", "--graphs", "eager", "--dtype", "float32"], id="the CPU's twin"),
        pytest.param(1, ["--device", "cuda"], id="one GPU", marks=pytest.mark.gpu),
    ],
)
def test_the_benchmark_measures_every_method(model, tmp_path, capsys, num_gpus, where):
    need_gpus(num_gpus)
    file = tmp_path / "gpu.json"
    sizes = ["--batch-sizes", "1,2", "--contexts", "8", "--tokens", "8", "--micro-mib", "4", "--matmul-size", "128"]
    models = ["--target", f"inflated:2e5:{model}", "--draft", model]
    assert main(["bench", "gpu", *where, *models, *sizes, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["is_complete"]
    assert {(case["method"], case["batch"]) for case in result["cases"]} == {
        (method, size) for method in ("none", "sequential", "ssd", "auto") for size in (1, 2)
    }
    assert all(case["tokens_per_s"] > 0 for case in result["cases"])
    assert "not measured" in capsys.readouterr().out  # of batch 16


@pytest.mark.gpu
def test_the_doctor_knows_each_gpu(capsys):
    need_gpus(1)
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for index in range(torch.cuda.device_count()):
        assert torch.cuda.get_device_properties(index).name in printed
