"""What is to be reached on a GPU, from made-up cases; and the time that a benchmark shares out."""

from forerun.recipes.benchmark_turns import Turns
from forerun.recipes.device_bars import reached_bars


def case(method: str, rate: float, *, batch: int = 1, context: int = 512, **more: float) -> dict[str, object]:
    return {"method": method, "batch": batch, "context": context, "tokens_per_s": rate, **more}


def found(cases) -> dict[str, tuple[float | None, bool | None]]:
    return {bar.name: (bar.found, bar.is_met) for bar in reached_bars(cases)}


def test_bars_are_met_missed_or_not_measured():
    cases = [
        case("none", 100.0, floor_share=0.9),
        case("none", 90.0, context=8000, floor_share=0.1),  # bars are of the first context
        case("ssd", 240.0, non_verify_share=0.08, over_transformers=5.0),
        case("ssd", 999.0, batch=16, non_verify_share=0.16),
        case("sequential", 200.0),
        case("auto", 239.0),
        case("auto", 70.0, context=8000),
        case("sequential", 10.0, context=8000),
        case("ssd", 10.0, context=8000, non_verify_share=0.5, over_transformers=1.0),
    ]
    assert found(cases) == {
        "AR at batch 1, part of what the bandwidth allows": (0.9, True),
        "part of an SSD step at batch 1 that is not verification": (0.08, True),
        "part of an SSD step at batch 16 that is not verification": (0.16, False),
        "SSD over SD at batch 1": (1.2, True),
        "SSD over AR at batch 1": (2.4, False),
        "auto over the best method, the worst of all sizes": (70 / 90, False),
        "SSD over transformers at batch 1": (5.0, True),
    }
    lines = [bar.line for bar in reached_bars(cases)]
    assert lines[0] == "met          AR at batch 1, part of what the bandwidth allows >= 0.85: 0.900"
    assert lines[2].startswith("MISSED ")
    assert "<= 0.15: 0.160" in lines[2]


def test_without_cases_nothing_is_claimed():
    assert set(found([]).values()) == {(None, None)}
    assert all(bar.line.startswith("not measured") for bar in reached_bars([]))
    # A ratio over the best needs all methods; one over transformers, transformers.
    some = [case("auto", 9.0), case("none", 1.0, floor_share=0.5), case("ssd", 1.0, non_verify_share=0.0)]
    some[-1]["over_transformers"] = None
    assert found(some)["auto over the best method, the worst of all sizes"] == (None, None)
    assert found(some)["SSD over transformers at batch 1"] == (None, None)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_time_is_shared_and_a_case_that_would_not_be_done_is_left_out():
    clock = Clock()
    turns = Turns(deadline_s=100.0, num_left=2, clock=clock)
    turns.begin()  # until 50
    assert turns.has_time("first", num_tokens=100)
    clock.now_s = 10.0
    assert turns.has_time("second", num_tokens=200)  # taken to last 10 s
    clock.now_s = 25.0
    # 5 s for 100 tokens more: 15 + 20 s are too long for what is left of the turn, 15 + 5 are not.
    assert not turns.has_time("large", num_tokens=600)
    assert turns.has_time("third", num_tokens=300)
    clock.now_s = 49.0
    assert not turns.has_time("late", num_tokens=1)
    turns.begin()  # has all that is left, and knows nothing of its own cases
    assert turns.has_time("other", num_tokens=10_000)
    clock.now_s = 101.0
    assert not turns.has_time("too late", num_tokens=1)
    turns.leave_out("other", "out of memory")
    assert turns.left_out == ["large", "late", "too late", "other: out of memory"]
