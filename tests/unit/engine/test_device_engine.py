"""The engine as users start it, with passes of fixed shape on a CPU; and the benchmark of devices, tiny."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from forerun import LLM, SpeculativeConfig
from forerun.cli.main import main
from forerun.core.errors import ConfigError
from forerun.engine.config import EngineConfig
from forerun.models.device import DeviceOptions
from forerun.models.draft import load_draft
from forerun.models.draft_runner import build_device_draft
from forerun.models.graph_pool import EagerRecorder
from forerun.models.load import load_checkpoint
from forerun.recipes import device_benchmark
from forerun.recipes.device_benchmark import DeviceBenchmarkConfig


def bench_gpu_script():
    """The file that users start for the benchmark of a GPU, as a module."""
    file = Path(__file__).parents[3] / "benchmarks" / "gpu" / "bench_gpu.py"
    spec = spec_from_file_location("bench_gpu", file)
    assert spec is not None
    module = module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


def test_every_method_on_a_device_gives_the_text_of_the_plain_path(outputs):
    expected, _ = outputs(draft="self", method="none")
    for method in ("none", "sequential", "ssd", "auto"):
        found, metrics = outputs(draft="self", method=method, graphs="eager")
        assert found == expected
        if method in {"sequential", "ssd"}:
            assert metrics.num_proposed > 0
        if method == "ssd":
            assert 0 < metrics.cache_hit_rate <= 1


def test_copies_of_the_draft_give_the_same_text_and_hit_as_one_with_their_outcomes(outputs):
    fixed = {"num_speculative_tokens": 3}
    expected, one = outputs(
        draft="self", method="ssd", graphs="eager", speculative=SpeculativeConfig(branch_budget=40, **fixed)
    )
    for speculative in (SpeculativeConfig(branch_budget=40, **fixed), SpeculativeConfig(**fixed)):
        found, metrics = outputs(
            draft="self", method="ssd", graphs="eager", draft_data_parallel=2, speculative=speculative
        )
        assert found == expected
        assert metrics.cache_hit_rate == one.cache_hit_rate
    found, _ = outputs(draft="self", method="auto", graphs="eager", draft_data_parallel=2)
    assert found == expected


def test_a_draft_that_fits_fewer_sequences_is_refused(model):
    target = load_checkpoint(model)
    options = DeviceOptions(recorder=EagerRecorder(torch.device("cpu")), cache_bytes=3 * 4 * 4096, num_tree_slots=8)
    draft = load_draft("self", target)
    with pytest.raises(ConfigError, match=r"the draft's keys and values fit \d of 9 sequences"):
        build_device_draft(draft, dtype="float32", num_sequences=9, capacity=24, options=options)


def test_look_up_in_the_context_has_no_copies(model):
    with pytest.raises(ConfigError, match=r"draft_data_parallel=2: look-up in the context"):
        LLM(model, graphs="eager", draft="ngram", draft_data_parallel=2)


@pytest.mark.parametrize("dtype", ["float8", "int4"])
def test_methods_agree_in_narrow_formats_too(outputs, dtype):
    expected, _ = outputs(draft="self", method="none", dtype=dtype, graphs="eager")
    found, metrics = outputs(draft="self", method="ssd", dtype=dtype, graphs="eager")
    assert found == expected
    assert metrics.num_proposed > 0


def test_memory_for_fewer_sequences_than_asked_for_decodes_in_turns(outputs):
    expected, _ = outputs(draft="self", method="none")
    bytes_each = 2 * 4 * 2 * 8 * (128 + 1) * 4
    found, _ = outputs(draft="self", method="ssd", graphs="eager", kv_cache_bytes=bytes_each)
    assert found == expected
    with pytest.raises(ConfigError, match="set a smaller max_model_len"):
        outputs(draft="self", method="none", graphs="eager", kv_cache_bytes=bytes_each - 1)


@pytest.mark.parametrize("method", ["none", "sequential", "ssd"])
def test_rejection_on_a_device(outputs, method):
    """Without a draft the tokens are those of the plain path; with one, the greedy request's, the same by any rule."""
    speculative = SpeculativeConfig(verification="rejection", num_speculative_tokens=3)
    expected, _ = outputs(draft=None, method="none", speculative=speculative)
    found, metrics = outputs(draft="self", method=method, graphs="eager", speculative=speculative)
    assert found == expected if method == "none" else found[0] == expected[0]
    assert method == "none" or metrics.num_proposed > 20


def test_drafts_of_passes_of_fixed_shape_are_not_rescaled(model):
    with pytest.raises(ConfigError, match=r"saguaro_c=0\.5: in passes of fixed shape"):
        LLM(model, graphs="eager", speculative=SpeculativeConfig(verification="rejection", saguaro_c=0.5))


def test_int8_has_no_passes_of_fixed_shape(model):
    with pytest.raises(ConfigError, match='dtype="int8"'):
        LLM(model, dtype="int8", graphs="eager", draft=None)


def test_a_device_that_is_not_there_is_one_line(model, capsys):
    assert main(["generate", "--target", model, "--device", "cuda:99", "Hello"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert 'device="cuda:99"' in error


def test_the_benchmark_of_devices_runs_on_a_cpu(model, tmp_path, capsys):
    for package in ("matplotlib", "transformers"):
        pytest.importorskip(package)
    file, plot = tmp_path / "gpu.json", tmp_path / "gpu.png"
    sizes = ["--batch-sizes", "1", "--contexts", "8", "--tokens", "4", "--micro-mib", "1", "--matmul-size", "64"]
    models = ["--target", f"inflated:2e5:{model}", "--draft", model, "--dtype", "float32", "--graphs", "eager"]
    models += ["--methods", "none,ssd"]
    given = [*models, *sizes, "--device", "cpu", "--json", str(file), "--plot", str(plot)]
    assert main(bench_gpu_script().arguments(given)) == 0
    result = json.loads(file.read_text())
    peers = {f"transformers-{mode}" for mode in ("plain", "look-up", "assisted")}
    assert {case["method"] for case in result["cases"]} == {"none", "ssd"} | peers
    for case in result["cases"]:
        assert case["tokens_per_s"] > 0
        assert case["num_as_ar"] == 4  # the inflated model is one model, whoever runs it
        if case["method"].startswith("transformers"):
            continue
        assert 0 < case["verify_ms"] <= case["step_ms"]
        assert 0 < case["target_busy_ms"] <= case["step_ms"]
        assert (case["draft_busy_ms"] is None) == (case["method"] == "none")
        assert case["over_transformers"] > 0
        if case["method"] == "none":
            assert case["over_ar"] == pytest.approx(1)
            assert case["graphs_recorded"] == 0
    assert result["left_out"] == []
    assert result["is_complete"]
    assert {bar["is_met"] for bar in result["bars"] if "batch 16" in bar["name"]} == {None}
    assert all(bar["found"] > 0 for bar in result["bars"] if "SSD over AR" in bar["name"])
    assert result["select_ms"].keys() == {"1"}
    assert result["floor"]["bytes"] > 4 * 1.5e5
    printed = capsys.readouterr().out
    assert "has the cost of a model of 0.0002 billion weights" in printed.splitlines()[0]
    assert printed.count("not measured") == 3  # nothing of batch 16, no SD, and so no auto beside all others
    assert plot.stat().st_size > 1000


def test_the_benchmark_measures_what_matters_most_first():
    config = DeviceBenchmarkConfig(engine=EngineConfig(), batch_sizes=(1, 4, 32), context_tokens=(512, 2048, 8000))
    assert config.sizes == [
        (1, 512), (4, 512), (32, 512), (1, 2048), (1, 8000), (32, 2048), (32, 8000),
    ]  # fmt: skip


def test_the_benchmark_does_without_a_peer_that_is_not_there(model, monkeypatch):
    monkeypatch.setattr(device_benchmark, "find_spec", lambda _name: None)
    config = DeviceBenchmarkConfig(
        engine=EngineConfig(target=model, draft=None, dtype="float32", graphs="eager"), methods=("none",),
        batch_sizes=(1,), context_tokens=(8,), max_tokens=2, with_peers=True, micro_bytes=2**16, matmul_size=8,
    )  # fmt: skip
    first, *_, last = device_benchmark.device_benchmark(config)
    assert (first["is_complete"], first["cases"]) == (False, [])
    assert first["micro"]["read_bytes_per_s"] > 0
    assert last["is_complete"]
    assert last["left_out"] == ["transformers: not installed: pip install 'forerun[bench]'"]
    assert [case["method"] for case in last["cases"]] == ["none"]


def test_the_benchmark_says_what_it_left_out(model, tmp_path, capsys):
    sizes = ["--batch-sizes", "1", "--contexts", "8", "--tokens", "6", "--micro-mib", "1", "--matmul-size", "64"]
    options = ["--target", model, "--draft", "self", "--dtype", "float32", "--graphs", "eager", "--methods", "none,ssd"]
    assert main(["bench", "gpu", *options, *sizes, "--time-limit", "0"]) == 0
    assert "left out: AR, batch 1, context 8; SSD, batch 1, context 8" in capsys.readouterr().out
    assert main(["bench", "gpu", *options, "--batch-sizes", "1;2"]) == 2
    assert "--batch-sizes 1;2: must be whole numbers" in capsys.readouterr().err
