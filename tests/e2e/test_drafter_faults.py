"""Faults of the real drafter's process: one warning, the same output, no hang, and no process left behind.

The draft is the target's own file, so that drafts are good and the drafter is busy.
"""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from itertools import zip_longest

import psutil
import pytest

from forerun import LLM, SamplingParams
from forerun.core.errors import ModelLoadError, RequestError
from forerun.engine import speculation
from forerun.engine.config import SpeculativeConfig
from forerun.models.load import default_model_path

pytestmark = [pytest.mark.model, pytest.mark.slow]

DRAFT = str(default_model_path())
PROMPTS = ["The capital of France is", "Once upon a time there was a"]
PARAMS = SamplingParams(temperature=0.7, seed=3, max_tokens=24, ignore_eos=True)


def engine(method: str = "ssd", *, draft: str = DRAFT, **speculative) -> LLM:
    config = SpeculativeConfig(**({"num_speculative_tokens": 3, "branch_budget": 4} | speculative))
    return LLM(method=method, draft=draft, max_model_len=64, max_num_seqs=2, speculative=config)


def drafters(of: int | None = None) -> list[psutil.Process]:
    """Drafters below a process (this one by default), zombies included."""
    return [
        process
        for process in psutil.Process(of).children(recursive=True)
        if process.status() == psutil.STATUS_ZOMBIE or "forerun.engine.speculative.worker" in process.cmdline()
    ]


@pytest.fixture(scope="module")
def expected() -> list[tuple[int, ...]]:
    with engine("none") as llm:
        return [completion.token_ids for completion in llm.generate(PROMPTS, PARAMS)]


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Iterator[None]:
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    before = {process.pid for process in drafters()}
    yield
    assert {process.pid for process in drafters()} <= before
    if cores is not None:
        assert os.sched_getaffinity(0) == cores


def decode_with_a_fault(llm: LLM, fault) -> tuple[list[tuple[int, ...]], list[warnings.WarningMessage]]:
    """Stream the prompts; the fault strikes after a few chunks."""
    outputs: dict[int, tuple[int, ...]] = {0: (), 1: ()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, chunk in enumerate(llm.stream(PROMPTS, PARAMS)):
            outputs[chunk.index] += chunk.token_ids
            if number == 4:
                fault()
    return [outputs[0], outputs[1]], [warning for warning in caught if warning.category is RuntimeWarning]


@pytest.mark.parametrize(
    ("stop_signal", "fallback"),
    [(signal.SIGKILL, "neural"), (signal.SIGSTOP, "neural"), (signal.SIGSTOP, "none")],
    ids=["killed", "stopped", "stopped, and nobody waits"],
)
def test_a_drafter_that_fails_under_way(expected, stop_signal, fallback):
    timeout_s = 60.0 if stop_signal == signal.SIGKILL else 2.0  # one that is killed need not be waited for
    with engine(fallback=fallback, drafter_timeout_s=timeout_s, drafter_restarts=0) as llm:
        (process,) = drafters()
        got, caught = decode_with_a_fault(llm, lambda: process.send_signal(stop_signal))
        assert got == expected
        if fallback == "none":  # the output may be there before the timeout is
            assert len(caught) <= 1
            return
        assert len(caught) == 1
        assert "decoding continues with the target alone" in str(caught[0].message)
        assert drafters() == []
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the next call says nothing more, and gives the same
            assert [completion.token_ids for completion in llm.generate(PROMPTS, PARAMS)] == expected


def test_another_drafter_takes_the_place_of_one_that_was_killed(expected):
    with engine() as llm:
        (process,) = drafters()
        got, caught = decode_with_a_fault(llm, process.kill)
        assert got == expected
        assert "until another drafter is ready" in str(caught[0].message)
        for _ in range(200):  # the target goes on alone while the other one loads
            assert [completion.token_ids for completion in llm.generate(PROMPTS, PARAMS)] == expected
            if llm.last_metrics.acceptance_rate > 0:
                break
        (other,) = drafters()
        assert other.pid != process.pid
        assert llm.last_metrics.acceptance_rate > 0


def test_a_drafter_killed_while_it_loads(expected, monkeypatch):
    start = speculation.DrafterProcess

    def start_and_kill(config):
        process = start(config)
        os.kill(process.pid, signal.SIGKILL)
        return process

    monkeypatch.setattr(speculation, "DrafterProcess", start_and_kill)
    with pytest.warns(RuntimeWarning, match="ended while it was loading") as caught:
        llm = engine()
    assert len(caught) == 1
    with llm:
        assert [completion.token_ids for completion in llm.generate(PROMPTS, PARAMS)] == expected
        assert llm.last_metrics.cores == 1


def test_a_pause_longer_than_the_timeout_is_no_fault(expected):
    with warnings.catch_warnings(), engine(drafter_timeout_s=2.0) as llm:
        warnings.simplefilter("error")
        stream = llm.stream(PROMPTS, PARAMS)
        for _ in range(5):
            next(stream)
        time.sleep(2.5)
        with pytest.raises(RequestError, match="decoding already"):
            llm.generate(PROMPTS, PARAMS)
        for _ in stream:
            pass
        time.sleep(2.5)
        assert [completion.token_ids for completion in llm.generate(PROMPTS, PARAMS)] == expected
        # Whether a draft as large as the target is ready in time for a hit is a race; that it still drafts is not.
        assert llm.last_metrics.acceptance_rate > 0


def test_a_draft_that_cannot_be_loaded_is_the_users_error(tmp_path):
    missing = str(tmp_path / "missing.gguf")
    with pytest.raises(ModelLoadError, match=r"missing\.gguf"):
        engine(draft=missing)


def test_two_engines_at_once(expected):
    with engine() as first, engine() as second:
        assert len(drafters()) == 2
        streams = [llm.stream(PROMPTS, PARAMS) for llm in (first, second)]
        outputs: list[list[tuple[int, ...]]] = [[(), ()], [(), ()]]
        for chunks in zip_longest(*streams):  # a chunk of the one, a chunk of the other
            for output, chunk in zip(outputs, chunks, strict=True):
                if chunk is not None:
                    output[chunk.index] += chunk.token_ids
        assert outputs == [expected, expected]
        first.close()
        assert len(drafters()) == 1
        assert [completion.token_ids for completion in second.generate(PROMPTS, PARAMS)] == expected


SCRIPT = f"""
import sys
from forerun import LLM, SamplingParams
from forerun.engine import speculation
from forerun.engine.config import SpeculativeConfig
config = SpeculativeConfig(num_speculative_tokens=3)
llm = LLM(method="ssd", draft={DRAFT!r}, max_model_len=512, speculative=config)
params = SamplingParams(temperature=0, max_tokens=int(sys.argv[1]), ignore_eos=True)
for chunk in llm.stream("Once upon a time", params):
    sys.stdout.write("x")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("end", [None, signal.SIGINT, signal.SIGKILL])
def test_a_script_needs_no_main_guard_and_leaves_no_drafter(tmp_path, end):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    num_tokens = "16" if end is None else "400"
    with subprocess.Popen(
        [sys.executable, script, num_tokens], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as target:
        assert target.stdout is not None
        assert target.stdout.read(3) == "xxx"
        children = drafters(target.pid)
        assert len(children) == 1
        if end is not None:
            target.send_signal(end)
        _, errors = target.communicate(timeout=30)
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert (len(gone), alive) == (1, [])
    if end is None:
        assert (target.returncode, errors) == (0, "")
