"""From records to results: the arithmetic, on records small enough to check by hand."""

import pytest

from forerun.recipes.decode_benchmark.bars import Bar, bars
from forerun.recipes.decode_benchmark.summary import decode_statistics, identical_outputs, speedup, summarise

FACTS = {"target_bytes": 100_000_000, "draft_bytes": 40_000_000, "bytes_per_pass": 200_000_000, "max_tokens": 128}


def measurement(engine: str, prompt: int, *, tokens_per_s: float, temperature: float = 0.0, **fields) -> dict:
    return {
        "record": "measurement",
        "engine": engine,
        "prompt_id": f"p{prompt}",
        "kind": "chat" if prompt % 2 else "code",
        "temperature": temperature,
        "num_tokens": 11,
        "first_token_s": 0.1,
        "decode_s": 10 / tokens_per_s,
        "wall_s": 0.1 + 10 / tokens_per_s,
        "cpu_s": 0.1,
        "foreign_cpu_s": 0.0,
        "output_digest": "same",
        "metrics": None,
    } | fields


def metrics(**fields) -> dict:
    return {
        "num_engine_steps": 4,
        "num_verifications": 4,
        "num_proposed": 10,
        "num_look_ups": 4,
        "acceptance_rate": 0.5,
        "mean_acceptance_length": 3.0,
        "cache_hit_rate": 0.9,
        "non_verify_share": 0.1,
        "non_verify_share_hit": 0.05,
    } | fields


def records(speeds: dict[str, float], **fields) -> list[dict]:
    """A run of two prompts in which every engine decodes at one speed."""
    described = [
        {"record": "engine", "engine": name, "label": name.upper(), "cores": [0], "facts": {}}
        | {"is_own": not name.startswith("llama")}
        for name in speeds
    ]
    measured = [
        measurement(name, prompt, tokens_per_s=speed, metrics=metrics() if name == "ssd" else None, **fields)
        for prompt in range(2)
        for name, speed in speeds.items()
    ]
    session = {"record": "session", "manifest": {"cpu_model": "test"}, "facts": FACTS}
    return [session, {"record": "bandwidth", "bytes_per_s": 10e9}, *described, *measured]


SPEEDS = {"ar": 40.0, "sd": 60.0, "ssd": 90.0, "auto": 88.0, "ar-2": 50.0, "sd-2": 70.0, "llama.cpp-1": 40.0}


def test_ratio_is_of_totals_not_a_mean_of_ratios():
    measured = [
        measurement("a", 0, tokens_per_s=10),
        measurement("b", 0, tokens_per_s=10),
        measurement("a", 1, tokens_per_s=40),
        measurement("b", 1, tokens_per_s=10),
    ]
    ratio = speedup(measured, "a", "b")
    assert ratio is not None
    assert ratio["value"] == pytest.approx((20 / 1.25) / (20 / 2))
    assert ratio["median"] == pytest.approx(2.5)
    assert ratio["low"] == pytest.approx(1.0)
    assert ratio["high"] == pytest.approx(4.0)


def test_ratio_uses_shared_prompts_only():
    measured = [measurement("a", index, tokens_per_s=20) for index in range(5)]
    measured += [measurement("b", index, tokens_per_s=10 if index < 3 else 1000) for index in (0, 1, 2, 7)]
    ratio = speedup(measured, "a", "b")
    assert ratio is not None
    assert ratio["num_prompts"] == 3
    assert ratio["value"] == pytest.approx(2.0)
    assert speedup(measured, "a", "c") is None


def test_interval_holds_the_ratio_and_narrows_with_prompts():
    few, many = (
        [
            measurement(name, index, tokens_per_s=speed * (1 + 0.3 * (index % 4)))
            for index in range(count)
            for name, speed in (("a", 20 + 9 * (index % 3)), ("b", 10))
        ]
        for count in (8, 60)
    )
    wide, narrow = speedup(few, "a", "b"), speedup(many, "a", "b")
    assert wide is not None
    assert narrow is not None
    assert wide["low"] <= wide["value"] <= wide["high"]
    assert narrow["high"] - narrow["low"] < wide["high"] - wide["low"]


def test_one_token_outputs_do_not_break_or_bend_the_speed():
    measured = [
        measurement("a", 0, tokens_per_s=20),
        measurement("a", 1, tokens_per_s=20, num_tokens=1, decode_s=0.0, wall_s=0.1),
    ]
    found = decode_statistics(measured)
    assert found["tokens_per_s"] == pytest.approx(20)
    assert found["num_tokens"] == 12


def test_rates_are_weighted_by_their_counts_and_by_time():
    measured = [
        measurement("ssd", 0, tokens_per_s=10, metrics=metrics(num_look_ups=1, cache_hit_rate=0.0)),
        measurement("ssd", 1, tokens_per_s=10, metrics=metrics(num_look_ups=3, cache_hit_rate=1.0)),
        measurement("ssd", 2, tokens_per_s=5, metrics=metrics(num_look_ups=0, non_verify_share=0.4)),
    ]
    found = decode_statistics(measured)
    assert found["cache_hit_rate"] == pytest.approx(0.75)
    assert found["non_verify_share"] == pytest.approx((0.1 + 0.1 + 2 * 0.4) / 4)


def test_identical_outputs_compares_our_methods_only():
    engines = {"ar": {"is_own": True}, "sd": {"is_own": True}, "llama.cpp-1": {"is_own": False}}
    measured = [measurement(name, prompt, tokens_per_s=10) for prompt in range(3) for name in engines]
    for record in measured:
        if record["engine"] == "llama.cpp-1" or (record["engine"], record["prompt_id"]) == ("sd", "p2"):
            record["output_digest"] = "other"
    assert identical_outputs(measured, engines) == {"num_compared": 3, "num_identical": 2}


def test_summary_of_a_whole_run():
    run = records(SPEEDS) + [{"record": "start", "engine": "ar", "seconds": seconds} for seconds in (5.0, 3.0, 4.0)]
    summary = summarise(run)
    assert summary["greedy"]["best_on_two_cores"] == "ssd"
    assert summary["greedy"]["speedups"]["ssd / ar"]["value"] == pytest.approx(2.25)
    assert summary["greedy"]["engines"]["ssd"]["by_kind"].keys() == {"chat", "code"}
    assert summary["sampled"] == {"engines": {}, "best_on_two_cores": None, "speedups": {}}
    assert summary["floor"]["floor_ms_per_token"] == pytest.approx(20.0)
    assert summary["floor"]["ar_over_floor"] == pytest.approx(25 / 20)
    assert summary["start_s"]["ar"]["median"] == 4.0
    assert summary["quietness"]["median_foreign_cores"] == 0


def verdicts(run: list[dict]) -> dict[str, str]:
    return {bar.name.split(",")[0]: bar.verdict for bar in bars(summarise(run))}


def test_bars_are_met_by_a_run_that_reaches_them():
    found = verdicts(records(SPEEDS))
    assert found["SSD (1 + 1 cores) over SD (1 core)"] == "met"
    assert found["SSD (1 + 1 cores) over AR (1 core)"] == "met"
    assert found["Mean acceptance length of SSD"] == "met"
    assert found["auto over the best fixed method"] == "met"
    assert found["AR (1 core) over llama.cpp (1 thread)"] == "met"
    assert found["Best method on 2 cores over llama.cpp (2 threads)"] == "not measured"
    assert found["Start to first token"] == "not measured"


def test_bars_are_missed_by_a_run_that_does_not():
    found = verdicts(records(SPEEDS | {"ssd": 65.0, "auto": 60.0, "llama.cpp-1": 60.0}))
    assert found["SSD (1 + 1 cores) over SD (1 core)"] == "missed"
    assert found["SSD (1 + 1 cores) over AR (1 core)"] == "missed"
    assert found["AR (1 core) over llama.cpp (1 thread)"] == "missed"
    # SD on two threads is a method that a user can fix, too.
    assert found["auto over the best fixed method"] == "missed"


@pytest.mark.parametrize(
    ("draft_peak", "verdict", "worst"), [(500_000_000, "met", "target"), (700_000_000, "missed", "drafter")]
)
def test_memory_bar_takes_the_worst_process(draft_peak, verdict, worst):
    processes = [
        {"role": "target", "rss_bytes": 1, "peak_bytes": 749_000_000},
        {"role": "drafter", "rss_bytes": 1, "peak_bytes": draft_peak},
    ]
    run = [*records(SPEEDS), {"record": "memory", "engine": "ssd", "processes": processes}]
    (bar,) = [bar for bar in bars(summarise(run)) if "memory" in bar.name]
    assert bar.verdict == verdict
    assert bar.note.startswith(f"{worst} of ssd")


@pytest.mark.parametrize(("name", "limit_bytes"), [("ar", 750e6), ("ssd", 750e6), ("sd", 810e6), ("auto", 810e6)])
def test_a_process_may_hold_the_files_it_loads(name, limit_bytes):
    processes = [{"role": "target", "rss_bytes": 1, "peak_bytes": 2}]
    run = [*records(SPEEDS), {"record": "memory", "engine": name, "processes": processes}]
    assert summarise(run)["memory"][name]["target"]["limit_bytes"] == pytest.approx(limit_bytes)


def test_memory_of_a_peer_has_no_bar():
    processes = [{"role": "target", "rss_bytes": 1, "peak_bytes": 5_000_000_000}]
    run = [*records(SPEEDS), {"record": "memory", "engine": "llama.cpp-1", "processes": processes}]
    (bar,) = [bar for bar in bars(summarise(run)) if "memory" in bar.name]
    assert bar.verdict == "not measured"


def test_run_without_any_measurement_has_a_summary():
    summary = summarise(records({})[:1])
    assert {bar.verdict for bar in bars(summary)} == {"not measured"}


@pytest.mark.parametrize(("direction", "value", "verdict"), [
    ("at least", 1.0, "met"), ("at least", 0.999, "missed"), ("at most", 1.0, "met"), ("at most", 1.001, "missed"),
])  # fmt: skip
def test_verdict_includes_the_bound(direction, value, verdict):
    assert Bar(name="x", required=1.0, direction=direction, value=value).verdict == verdict
