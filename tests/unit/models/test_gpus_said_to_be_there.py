"""What is decided where there are GPUs, with ``torch.cuda`` saying that there are some."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from simulated.cuda import FakeCuda, fake_cuda

from forerun.core.errors import ConfigError, DeviceError, DeviceMemoryError
from forerun.models import device
from forerun.models.config import DecoderConfig
from forerun.models.cuda_recorder import CudaGraphRecorder
from forerun.models.device import DeviceOptions, cache_limit_bytes, recorder_for
from forerun.models.device_report import device_report, present_gpus
from forerun.models.graph_pool import EagerRecorder, GraphPool
from forerun.models.launched_share import Launch
from forerun.models.leading_runner import LeadingRunner
from forerun.models.share_process import ShareConfig
from forerun.models.slot_cache import SlotCache

CONFIG = DecoderConfig(
    vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=4,
    max_len=64,
)  # fmt: skip
GIB = 2**30


@pytest.fixture
def fake(monkeypatch) -> FakeCuda:
    """Three H100s, of which a fifth of the memory is taken."""
    fake = fake_cuda(monkeypatch)
    said = {
        "is_available": lambda: True,
        "device_count": lambda: 3,
        "empty_cache": lambda: None,
        "mem_get_info": lambda _device: (64 * GIB, 80 * GIB),
        "get_device_properties": lambda index: SimpleNamespace(
            name=f"H100 {index}", major=9, minor=0, multi_processor_count=132
        ),
    }
    for name, says in said.items():
        monkeypatch.setattr(torch.cuda, name, says)
    return fake


def test_gpus_are_described_and_what_copies_of_a_draft_are_for(fake):
    gpus = present_gpus()
    assert [gpu.name for gpu in gpus] == ["H100 0", "H100 1", "H100 2"]
    assert (gpus[0].capability, gpus[0].total_bytes, gpus[0].free_bytes) == ((9, 0), 80 * GIB, 64 * GIB)
    assert "--draft-data-parallel 2" in device_report(gpus, cuda_build="13.0")["draft"]
    assert "--draft-data-parallel" not in device_report(gpus[:2], cuda_build="13.0")["draft"]


def test_passes_are_graphs_in_streams_and_the_targets_go_first(fake, monkeypatch):
    target = recorder_for("cuda:1", is_eager=False, is_urgent=True)
    draft = recorder_for("cuda:1", is_eager=False, is_urgent=False)
    assert isinstance(target, CudaGraphRecorder)
    assert isinstance(draft, CudaGraphRecorder)
    assert (target._stream.priority, draft._stream.priority) == (-1, 0)
    eager = recorder_for("cuda:2", is_eager=True, is_urgent=True)
    assert isinstance(eager, EagerRecorder)
    assert eager.device == torch.device("cuda", 2)
    asked = []

    def partition_for(*, num_sms, device_id):
        asked.append((num_sms, device_id))
        return SimpleNamespace(Stream=lambda: "of some multiprocessors")

    monkeypatch.setattr(device, "partition_for", partition_for)
    some = recorder_for("cuda:1", is_eager=False, is_urgent=False, sm_share=0.25)
    assert asked == [(32, 1)]
    assert some._stream == "of some multiprocessors"


def test_the_cache_takes_four_fifths_of_what_is_free(fake):
    recorder = SimpleNamespace(device=torch.device("cuda", 0))
    assert cache_limit_bytes(DeviceOptions(recorder=recorder)) == int(0.8 * 64 * GIB)
    assert cache_limit_bytes(DeviceOptions(recorder=recorder, cache_bytes=GIB)) == GIB


def test_a_launched_process_takes_the_gpu_of_its_number_on_its_machine(fake):
    config = ShareConfig(target="x", dtype="bfloat16", parts=(1, 1), num_sequences=1, capacity=8, device="cuda:1")
    assert Launch(rank=5, local_rank=1, size=8).device(config) == "cuda:2"
    assert config.device_of(1) == "cuda:2"
    with pytest.raises(ConfigError, match="there are 3 CUDA devices"):
        Launch(rank=6, local_rank=2, size=8).device(config)


def test_memory_that_stays_short_without_graphs_is_an_error_and_is_given_back_first(fake, monkeypatch):
    given_back = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(True))

    def short(_words):
        raise torch.OutOfMemoryError("made up")

    recorder = EagerRecorder(torch.device("cpu"))
    recorder.run = lambda function, inputs: function(inputs)
    recorder.device = torch.device("cuda", 0)
    with pytest.raises(DeviceMemoryError, match="does not fit into the memory of cuda:0"):
        GraphPool(recorder).run(short, np.zeros(1, np.int64))
    assert len(given_back) == 2


def test_an_exchange_that_broke_off_is_told_as_the_end_of_the_other_process():
    """In whatever words it failed, if the other has gone; as it is, if not."""
    runner = SimpleNamespace(num_sequences=1, capacity=4, vocab_ids=None)
    is_gone = []

    def check():
        if is_gone:
            raise DeviceError("process 1 of the model ended")

    leader = LeadingRunner(runner, SimpleNamespace(), check=check)
    with pytest.raises(RuntimeError, match="odd words"), leader._exchanges():
        raise RuntimeError("odd words")
    with pytest.raises(DeviceError, match="a process that shares the model is gone"), leader._exchanges():
        raise RuntimeError("gloo: connection closed")
    with pytest.raises(DeviceError, match="can't go on"), leader._exchanges():
        raise torch.OutOfMemoryError("made up")
    is_gone.append(True)
    with pytest.raises(DeviceError, match="process 1 of the model ended"), leader._exchanges():
        raise RuntimeError("odd words")


def test_a_common_beginning_is_copied_with_the_hidden_states_that_are_kept():
    cache = SlotCache(CONFIG, num_sequences=2, capacity=8, dtype=torch.float32, device=torch.device("cpu"))
    cache.keep_features([0, 2])
    given = np.random.default_rng(0).standard_normal((5, 2, 8)).astype(np.float32)
    cache.write_features(0, 0, given)
    cache.copy_slots(0, 1, 0, 3)
    np.testing.assert_array_equal(cache.read_features(1, 0, 5), np.concatenate([given[:3], np.zeros_like(given[3:])]))
