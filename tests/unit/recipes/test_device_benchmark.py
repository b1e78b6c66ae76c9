"""What a benchmark of a device leaves out, and what it refuses."""

from types import SimpleNamespace

import pytest
import torch
from simulated.byte_model import save_byte_model

from forerun.core.errors import ConfigError, DeviceMemoryError
from forerun.engine.config import EngineConfig
from forerun.recipes import device_benchmark
from forerun.recipes.device_benchmark import DeviceBenchmarkConfig
from forerun.recipes.device_peers import peer_cases


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ()}, "methods: name at least one"),
        ({"batch_sizes": (1, 0)}, r"batch_sizes=\(1, 0\): each must be at least 1"),
        ({"context_tokens": (0,)}, r"context_tokens=\(0,\): each must be at least 1"),
        ({"max_tokens": 1}, "max_tokens=1: must be at least 2"),
    ],
)
def test_sizes_that_measure_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DeviceBenchmarkConfig(engine=EngineConfig(), **options)


def test_a_case_that_does_not_fit_into_memory_is_left_out_and_the_others_measured(monkeypatch, tmp_path):
    save_byte_model(tmp_path)
    own = device_benchmark._case

    def case(llm, *, batch, **sizes):
        if batch == 2:
            raise DeviceMemoryError("made up")
        return own(llm, batch=batch, **sizes)

    monkeypatch.setattr(device_benchmark, "_case", case)
    config = DeviceBenchmarkConfig(
        engine=EngineConfig(target=str(tmp_path), draft=None, dtype="float32", graphs="eager"), methods=("none",),
        batch_sizes=(1, 2, 3), context_tokens=(8,), max_tokens=2, micro_bytes=2**16, matmul_size=8,
    )  # fmt: skip
    *_, last = device_benchmark.device_benchmark(config)
    assert last["is_complete"]
    assert [found["batch"] for found in last["cases"]] == [1, 3]
    assert last["left_out"] == ["AR, batch 2, context 8: made up"]


def test_a_peer_out_of_memory_is_left_out_and_any_other_error_is_told():
    found = SimpleNamespace(tokens_per_s=5.0, first_s=0.1, token_ids=(1, 2))

    def decode(_prompts, *, mode, max_tokens):
        assert max_tokens == 2
        if mode == "look-up":
            raise torch.OutOfMemoryError("made up")
        return found

    peer = SimpleNamespace(modes=lambda **_options: ("plain", "look-up"), decode=decode)
    left_out: list[tuple[str, str]] = []

    def cases(has_time):
        return list(
            peer_cases(
                peer, [(1, 8), (2, 8)], lambda batch, context: [[0] * context] * batch, max_tokens=2,
                has_time=has_time, leave_out=lambda name, why: left_out.append((name, why)), report=lambda _line: None,
            )
        )  # fmt: skip

    assert [case["batch"] for case in cases(lambda _name, num_tokens: num_tokens < 16)] == [1]
    assert left_out == [("transformers look-up, batch 1, context 8", "out of memory")]

    def broken(_prompts, **_options):
        raise RuntimeError("another error")

    peer.decode = broken
    with pytest.raises(RuntimeError, match="another error"):
        cases(lambda *_asked: True)
