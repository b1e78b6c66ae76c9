"""A study's bars and its page: what was measured is said, and so is what was not."""

import numpy as np
import pytest

from forerun.planning.statistics import estimate
from forerun.recipes.mpc.bars import bars
from forerun.recipes.mpc.evaluate import Score
from forerun.recipes.mpc.report import report_page
from forerun.recipes.mpc.studies import Study
from forerun.recipes.mpc.table import result_lines

STARTS = np.arange(20.0)


def score(name, above):
    returns = (STARTS + above,)
    return Score(name=name, summary=name, returns=returns, interval=estimate(returns), plan_cpu_ms=2.0, num_failed=0,
                 successes=(0.9, 1.0))  # fmt: skip


@pytest.fixture
def results():
    plan = Study(task="pendulum", plain_way="ssr-8-8", least_plans_per_s=60, least_return=9.0, num_play_episodes=1,
                 least_success=0.95)  # fmt: skip
    scores = {name: score(name, above) for name, above in (("ssr", 2.0), ("proposal", 1.0), ("ssr-8-8", 2.0))}
    tuned = {"healthy": 3.0, "damaged": 1.0, "adapted": 2.5, "gained": {"value": 1.5, "low": 1.0, "high": 2.0}}
    tuned |= {"lost": tuned["gained"], "recovered": None}
    extras = {
        "rate": {"ssr": {"cpu_ms": 10.0, "per_cpu_s": 100.0}, "ssr-8-8": {"cpu_ms": 29.0, "per_cpu_s": 34.5}},
        "speculation": {"hit_rate": 0.9, "hit_ms": 1.0, "miss_ms": None, "plan_ms": 9.0, "return": 1.0,
                        "return_without": 1.0},
        "new_goals": [
            {"name": "x", "value": 0.5, "objective": "near(x=0.5)", "error": 0.1, "proposal_error": 0.2, "ratio": 0.5},
            {"name": "h", "value": 1.5, "objective": "near(h=1.5)", "error": 0.1, "proposal_error": 0.2, "ratio": 0.5,
             "tolerance": 0.05, "met_share": 0.8, "proposal_met_share": 0.1},
        ],
        "constraint": {"constraint": "keep_out(x=(0, 1))", "broken": 0.01, "broken_without": 0.2, "return": 1.0,
                       "return_without": 1.1, "success": 0.95, "success_without": 1.0},
        "moved_goal": {"num_steps_left": 10, "success": 0.9},
        "adaptation": [{"defect": "weak", "num_play_episodes": 1, "rows": {"ssr": tuned, "ssr-true": tuned}}],
    }  # fmt: skip
    return {
        "study": plan.as_json(),
        "machine": {"cpu_model": "a CPU", "git_revision": "abc"},
        "data": [{"num_episodes": 3, "num_steps": 30, "mean_return": 1.0, "p90_return": 2.0, "best_return": 3.0}],
        "rows": [found.beside(scores["ssr"], None) for found in scores.values()],
        "extras": extras,
        "bars": bars(plan, scores, extras),
    }


def test_bars_are_met_or_missed_by_their_values(results):
    found = {bar["name"]: (bar["value"], bar["is_met"]) for bar in results["bars"]}
    assert found["return of SSR"] == (pytest.approx(11.5), True)
    assert found["SSR above proposal, start by start: at least"] == (1.0, True)
    assert found["SSR above proposal: gap of the intervals"][1] is False, "starts differ more than ways"
    assert found["x 0.5 asked at run time: error over the proposal's"] == (0.5, False)
    assert found["speed of SSR over ssr-8-8"] == (pytest.approx(2.9), False)
    assert found["return of SSR above ssr-8-8, start by start: at least"] == (0.0, True)
    assert found["plans of SSR per CPU second"] == (100.0, True)
    assert found["weak: share of the lost return that adapted dynamics recover"] == (None, False)
    assert found["h 1.5 asked at run time: share of an episode within 0.05"] == (0.8, True)
    assert found["share of SSR's episodes that succeed"] == (pytest.approx(0.95), True)
    assert found["goal moved in mid-episode: share that reach the new one"] == (0.9, False)


def test_the_page_and_the_table_say_the_same(results):
    page, lines = report_page(results), result_lines(results)
    assert page.count("**missed**") == sum(line.startswith("MISSED") for line in lines) == 5
    assert "| proposal | 10.500 |" in page
    assert "| 95% |" in page
    assert "regret" not in page, "a column in which nothing was measured"
    assert "95% succeed, 100%" in page
    assert "not measured" in page
    assert any("damage weak, dynamics alone tuned on 1 episodes: 3.000 -> 1.000 -> 2.500" in line for line in lines)


def test_scores_survive_a_file():
    before = score("ssr", 1.0)
    after = Score.from_json(before.as_json())
    assert after.as_json() == before.as_json()
