"""The run itself, with engines that are tiny scripts: who is measured, what is recorded, what a failure does."""

import json
import sys
from pathlib import Path

import psutil
import pytest

from forerun.core.env import available_cores
from forerun.core.errors import ConfigError
from forerun.recipes.decode_benchmark import measure
from forerun.recipes.decode_benchmark.channel import Reply, Request
from forerun.recipes.decode_benchmark.engine_process import EngineProcess, Failure
from forerun.recipes.decode_benchmark.measure import Encoded, RecordFile, Workload, read_records, run_workload
from forerun.recipes.decode_benchmark.plan import Engine, Prompt

WORKER = Path(__file__).with_name("fake_worker.py")
REQUEST = Request(prompt_token_ids=(1, 2), max_tokens=4, temperature=0.0, seed=0, eos_ids=(2, 3))


def engine(name: str, behaviour: str = "answers", **fields) -> Engine:
    core = available_cores()[0]
    command = (sys.executable, str(WORKER), str(core), behaviour)
    return Engine(name=name, label=name, command=command, cores=(core,), **{"is_own": True, **fields})


def workload(*engines: Engine, num_prompts: int = 4, **fields) -> Workload:
    prompts = [
        Encoded(prompt=Prompt(id=f"p{index}", kind="chat", prompt="?"), token_ids=(1, index))
        for index in range(num_prompts)
    ]
    options = {"temperatures": (0.0, 0.7), "max_tokens": 4, "time_limit_s": 60.0, "facts": {"target": "fake"}} | fields
    return Workload(engines=engines, prompts=prompts, warm_up=(5,), eos_ids=(2,), **options)


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch):
    monkeypatch.setattr(measure, "read_bandwidth", lambda core: 1e10)


def run(work: Workload, path: Path | None = None, *, resume: bool = False) -> tuple[list[dict], list[str]]:
    file = RecordFile(path, fingerprint=work.fingerprint(), resume=resume)
    lines: list[str] = []
    run_workload(work, file, report=lines.append)
    return file.records, lines


def of_kind(records: list[dict], kind: str) -> list[dict]:
    return [record for record in records if record["record"] == kind]


def test_engine_answers_and_its_noise_is_no_reply():
    with EngineProcess(engine("a")) as process:
        assert process.hello(timeout_s=30) == {"ready": True, "versions": {"fake": "1"}}
        for _ in range(2):
            reply = process.ask(REQUEST, timeout_s=30)
            assert reply == Reply(token_ids=(7, 7, 7, 2), first_token_s=0.01, decode_s=0.1)
        (memory,) = process.memory()
        assert memory.role == "target"
        assert 0 < memory.rss_bytes <= memory.peak_bytes
        pid = process._process.pid
    assert not psutil.pid_exists(pid)


def test_engine_that_dies_is_a_failure_with_its_last_words():
    with EngineProcess(engine("a", "dies at once")) as process:
        assert process.hello(timeout_s=30) == Failure(reason="a has ended: no such model")


def test_engine_that_hangs_is_a_failure_and_leaves_no_process():
    with EngineProcess(engine("a", "hangs")) as process:
        process.hello(timeout_s=30)
        assert process.ask(REQUEST, timeout_s=0.2) == Failure(reason="a gave no reply within 0.2 s")
        pid = process._process.pid
        process._process.terminate()  # close() would wait for it politely first
    assert not psutil.pid_exists(pid)


def test_every_engine_gets_every_prompt_it_takes_at_each_temperature():
    records, _ = run(workload(engine("a"), engine("b", num_greedy=3, num_sampled=1)))
    measured = [(r["engine"], r["prompt_id"], r["temperature"]) for r in of_kind(records, "measurement")]
    everything = {("a", f"p{index}", temperature) for index in range(4) for temperature in (0.0, 0.7)}
    shares = {("b", f"p{index}", 0.0) for index in range(3)} | {("b", "p0", 0.7)}
    assert len(measured) == len(set(measured))
    assert set(measured) == everything | shares
    # No engine always follows the same one.
    assert [name for name, prompt, temperature in measured if (prompt, temperature) == ("p0", 0.0)] == ["a", "b"]
    assert [name for name, prompt, temperature in measured if (prompt, temperature) == ("p1", 0.0)] == ["b", "a"]


def test_record_holds_the_readings_and_a_digest_not_the_text():
    records, _ = run(workload(engine("a"), num_prompts=1))
    greedy, sampled = of_kind(records, "measurement")
    assert greedy["num_tokens"] == 4
    assert (greedy["first_token_s"], greedy["decode_s"]) == (0.01, 0.1)
    assert greedy["output_digest"] == sampled["output_digest"]
    assert greedy["wall_s"] > 0
    assert greedy["cpu_s"] >= 0
    assert len(of_kind(records, "memory")) == 1
    assert len(of_kind(records, "bandwidth")) >= 2
    assert of_kind(records, "session")[0]["manifest"]["versions"]["python"]


def test_start_is_measured_three_times_after_one_that_warms_the_files():
    records, _ = run(workload(engine("ar"), engine("sd"), num_prompts=1))
    assert [record["engine"] for record in of_kind(records, "start")] == ["ar"] * 3
    assert all(record["seconds"] > 0 for record in of_kind(records, "start"))


def test_engine_that_fails_is_recorded_and_left_out_while_the_others_go_on():
    records, lines = run(workload(engine("a", "dies later", is_own=False), engine("b"), engine("c", "dies at once")))
    failures = of_kind(records, "failure")
    assert [(f["engine"], f["is_own"], f["reason"]) for f in failures] == [
        ("c", True, "c has ended: no such model"),
        ("a", False, "a has ended: out of luck"),
    ]
    counts = [record["engine"] for record in of_kind(records, "measurement")]
    assert (counts.count("a"), counts.count("b"), counts.count("c")) == (1, 8, 0)
    assert "c: left out: c has ended: no such model" in lines


def test_resumed_run_measures_what_is_missing_only(tmp_path):
    path = tmp_path / "records.jsonl"
    work = workload(engine("a"))
    run(work, path)
    lines = path.read_text().splitlines()
    measured = [index for index, line in enumerate(lines) if json.loads(line)["record"] == "measurement"]
    kept = [line for index, line in enumerate(lines) if index not in measured[3:]]
    path.write_text("\n".join(kept) + '\n{"record": "measur')  # and a line cut short
    records, _ = run(work, path, resume=True)
    keys = [(r["prompt_id"], r["temperature"]) for r in of_kind(records, "measurement")]
    assert len(keys) == len(set(keys)) == 8
    assert len(of_kind(records, "session")) == 2
    assert read_records(path) == records


def test_a_file_that_is_there_is_never_mixed_into(tmp_path):
    path = tmp_path / "records.jsonl"
    work = workload(engine("a"))
    RecordFile(path, fingerprint=work.fingerprint(), resume=False).append("session", fingerprint=work.fingerprint())
    with pytest.raises(ConfigError, match="is there already; add --resume"):
        RecordFile(path, fingerprint=work.fingerprint(), resume=False)
    other = workload(engine("a"), max_tokens=5)
    with pytest.raises(ConfigError, match="other prompts, engines, models or settings"):
        RecordFile(path, fingerprint=other.fingerprint(), resume=True)


def test_file_of_something_else_is_an_error(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello\nworld\n")
    with pytest.raises(ConfigError, match=r"notes.txt:1: is no record"):
        read_records(path)


def test_time_limit_ends_the_run_between_prompts():
    records, lines = run(workload(engine("a"), time_limit_s=1e-9))
    assert of_kind(records, "measurement") == []
    assert "time limit reached after 0 of 4 prompts" in lines
    assert len(of_kind(records, "memory")) == 1
