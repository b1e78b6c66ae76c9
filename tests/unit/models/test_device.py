"""Which device is taken, how many sequences fit there, and what is said of it; on made-up GPUs."""

import pytest
import torch

from forerun.core.errors import ConfigError
from forerun.engine.config import EngineConfig, SpeculativeConfig
from forerun.models.config import DecoderConfig
from forerun.models.device import (
    DeviceOptions,
    affordable_sequences,
    cache_limit_bytes,
    checked_cuda_device,
    devices_from,
    recorder_for,
    sequence_bytes,
)
from forerun.models.device_report import GpuInfo, device_report
from forerun.models.device_runner import DeviceRunner
from forerun.models.graph_pool import EagerRecorder
from forerun.models.layout import parameter_shapes
from forerun.models.runner import build_runner
from forerun.models.sm_partition import num_partition_sms, partition_for
from forerun.models.static_pass import check_flex

CONFIG = DecoderConfig(
    vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=4,
    max_len=64,
)  # fmt: skip
H100 = GpuInfo(
    name="NVIDIA H100", capability=(9, 0), num_multiprocessors=132, total_bytes=80 * 2**30, free_bytes=78 * 2**30
)
CPU_RECORDER = EagerRecorder(torch.device("cpu"))


def test_a_cuda_device_has_a_number_and_must_be_there():
    assert checked_cuda_device("cuda", num_devices=1) == torch.device("cuda", 0)
    assert checked_cuda_device("cuda:3", num_devices=4) == torch.device("cuda", 3)
    with pytest.raises(ConfigError, match=r'device="cuda:4": there are 4 CUDA devices'):
        checked_cuda_device("cuda:4", num_devices=4)
    with pytest.raises(ConfigError, match="PyTorch finds no CUDA device here"):
        checked_cuda_device("cuda", num_devices=0)


def test_devices_that_follow_each_other_are_all_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert devices_from("cuda:1", 3, option="draft_data_parallel") == ("cuda:1", "cuda:2", "cuda:3")
    assert devices_from("cuda", 1, option="draft_data_parallel") == ("cuda:0",)
    assert devices_from("cpu", 2, option="draft_data_parallel") == ("cpu", "cpu")
    with pytest.raises(ConfigError, match="draft_data_parallel=4 from cuda:1 on: there are 4 GPUs here"):
        devices_from("cuda:1", 4, option="draft_data_parallel")


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_without_a_gpu_asking_for_one_is_an_error():
    with pytest.raises(ConfigError, match="no CUDA device"):
        recorder_for("cuda", is_eager=False, is_urgent=True)


def test_a_cpu_runs_passes_of_fixed_shape_only_when_asked():
    assert recorder_for("cpu", is_eager=False, is_urgent=True) is None
    recorder = recorder_for("cpu", is_eager=True, is_urgent=False)
    assert recorder is not None
    assert recorder.device == torch.device("cpu")


def test_as_many_sequences_as_fit_and_an_error_if_none_does():
    each = sequence_bytes(CONFIG, num_slots=32, item_bytes=2)
    assert each == 2 * 3 * 1 * 4 * 32 * 2
    assert affordable_sequences(wanted=8, bytes_each=each, cache_bytes=100 * each) == 8
    assert affordable_sequences(wanted=8, bytes_each=each, cache_bytes=4 * each - 1) == 3
    with pytest.raises(ConfigError, match=r"one sequence takes .* set a smaller max_model_len"):
        affordable_sequences(wanted=8, bytes_each=each, cache_bytes=each - 1)


def test_a_runner_for_a_device_takes_as_many_sequences_as_its_cache_may_hold():
    shapes = parameter_shapes(CONFIG)
    each = sequence_bytes(CONFIG, num_slots=32 + 6 + 1, item_bytes=4)
    options = DeviceOptions(recorder=CPU_RECORDER, cache_bytes=2 * each + 5, num_tree_slots=6)
    runner = build_runner(
        CONFIG, lambda name: torch.zeros(shapes[name]).numpy(), dtype="float32", num_sequences=5, capacity=32,
        options=options,
    )  # fmt: skip
    assert isinstance(runner, DeviceRunner)
    assert runner.num_sequences == 2
    assert sum(half.numel() * 4 for half in (*runner.cache.keys, *runner.cache.values)) == 2 * each
    assert cache_limit_bytes(DeviceOptions(recorder=CPU_RECORDER)) is None
    with pytest.raises(ConfigError, match='dtype="int8"'):
        build_runner(
            CONFIG, lambda name: torch.zeros(shapes[name]).numpy(), dtype="int8", num_sequences=1, capacity=8,
            options=options,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, r"device='gpu': must be cpu, cuda or cuda:N"),
        ({"device": "cuda", "draft_device": "cuda:x"}, r"draft_device='cuda:x'"),
        ({"draft_device": "cuda"}, "set device to a GPU too"),
        ({"draft_sm_share": 1.0}, r"draft_sm_share=1.0: must be in \(0, 1\)"),
        ({"device": "cuda", "draft_device": "cuda:1", "draft_sm_share": 0.2}, "has all of it; leave one of them out"),
        ({"draft_data_parallel": 0}, "draft_data_parallel=0: must be >= 1"),
        ({"draft_data_parallel": 2}, "copies of the draft are for GPUs"),
        ({"device": "cuda", "draft_data_parallel": 2}, "set draft_device to the first of them"),
        ({"device": "cuda:1", "draft_device": "cuda", "draft_data_parallel": 2}, "takes cuda:1; copies of the draft"),
        (
            {"device": "cuda", "tensor_parallel": 4, "draft_device": "cuda:3", "draft_data_parallel": 2},
            "the target takes cuda:0 to cuda:3; copies of the draft need others",
        ),
        ({"graphs": "eager", "draft_data_parallel": 2, "draft": None}, "there is no draft"),
        ({"device": "cuda", "draft_device": "cpu"}, "runs on one too"),
        ({"graphs": "eager", "draft_data_parallel": 2, "method": "sequential"}, "only method="),
        (
            {"graphs": "eager", "draft_data_parallel": 3, "speculative": SpeculativeConfig(branch_budget=2)},
            "branch_budget=2 with draft_data_parallel=3",
        ),
        ({"graphs": "none"}, "graphs='none': must be one of auto, eager"),
        ({"attention": "flash"}, "attention='flash': must be one of matmul, flex"),
        ({"kv_cache_bytes": 0}, "kv_cache_bytes=0: must be >= 1"),
    ],
)
def test_options_of_devices_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**options)


def test_copies_of_a_draft_may_follow_the_targets_gpus():
    config = EngineConfig(device="cuda", tensor_parallel=4, draft_device="cuda:4", draft_data_parallel=2)
    assert config.draft_data_parallel == 2
    assert EngineConfig(device="cuda:2", draft_device="cuda:0", draft_data_parallel=2).draft_device == "cuda:0"


def test_flex_attention_is_for_heads_that_its_kernel_takes():
    check_flex(head_dim=16, device_type="cuda")
    check_flex(head_dim=8, device_type="cpu")
    with pytest.raises(ConfigError, match="heads of 16 numbers at least, and those of this model have 8"):
        check_flex(head_dim=8, device_type="cuda")


def test_passes_of_fixed_shape_are_for_gpus_and_where_asked():
    assert not EngineConfig().runs_on_device
    assert EngineConfig(device="cuda:1").runs_on_device
    assert EngineConfig(graphs="eager").runs_on_device


def test_multiprocessors_are_set_apart_in_the_steps_of_the_gpu():
    assert num_partition_sms(0.25, num_sms=132, capability=(9, 0)) == 32
    assert num_partition_sms(0.01, num_sms=132, capability=(9, 0)) == 8
    assert num_partition_sms(0.99, num_sms=132, capability=(9, 0)) == 128
    assert num_partition_sms(0.25, num_sms=108, capability=(8, 0)) == 28
    assert num_partition_sms(0.01, num_sms=108, capability=(8, 0)) == 4


def test_a_stream_of_its_own_multiprocessors_or_a_warning_and_none():
    asked: list[dict[str, int]] = []

    class Partition:
        def Stream(self):  # noqa: N802 (torch's name)
            return "stream"

    def create(**options: int) -> Partition:
        asked.append(options)
        return Partition()

    def refuse(**_options: int) -> Partition:
        raise RuntimeError("driver too old")

    partition = partition_for(num_sms=16, device_id=1, create=create)
    assert partition is not None
    assert partition.Stream() == "stream"
    assert asked == [{"num_sms": 16, "device_id": 1}]
    with pytest.warns(RuntimeWarning, match="no 16 multiprocessors apart for the draft .driver too old."):
        assert partition_for(num_sms=16, device_id=1, create=refuse) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_torch_without_a_gpu_has_no_multiprocessors_to_set_apart():
    with pytest.warns(RuntimeWarning, match="it runs in a stream of lower priority"):
        assert partition_for(num_sms=16, device_id=0) is None


def test_the_report_says_why():
    none = device_report((), cuda_build=None)
    assert (none["default_device"], none["cuda"]) == ("cpu", [])
    assert "build of PyTorch is for CPUs" in none["default_device_why"]
    assert "finds no CUDA device" in device_report((), cuda_build="13.0")["default_device_why"]
    one = device_report([H100], cuda_build="13.0", has_triton=True)
    assert "compute capability 9.0, 132 multiprocessors, 78.0 of 80.0 GiB free" in one["cuda:0"]
    assert one["cuda:0_dtype"] == "bfloat16"
    assert "is there" in one["attention_why"]
    assert "on the one GPU" in one["draft"]
    old = GpuInfo(name="T4", capability=(7, 5), num_multiprocessors=40, total_bytes=2**34, free_bytes=2**33)
    two = device_report([old, H100], cuda_build="13.0", has_triton=False)
    assert "emulated" in two["cuda:0_dtype_why"]
    assert two["cuda:0_weights"] == (
        "--dtype float8 halves the memory, and takes longer: its products need compute capability 8.9; --dtype int4 is "
        "refused: its kernel needs compute capability 8.0"
    )
    assert two["cuda:1_weights"] == "--dtype float8 halves what a pass reads; --dtype int4 reads less than a third"
    assert "emulated" not in two["cuda:1_dtype_why"]
    assert "needs Triton" in two["attention_why"]
    assert "--draft-device cuda:1" in two["draft"]
