"""A study from nothing to its table, in miniature."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from forerun.cli.mpc import _TASKS
from forerun.cli.mpc_study import _STUDIES
from forerun.data.trajectories import Episode, Trajectories
from forerun.envs.control_tasks import TASK_NAMES, control_task
from forerun.recipes.mpc import damage
from forerun.recipes.mpc import reproduce as study_run
from forerun.recipes.mpc.adapt import AdaptConfig
from forerun.recipes.mpc.collect import collect
from forerun.recipes.mpc.contenders import CONTENDERS
from forerun.recipes.mpc.novelty import _late_error, _met_share
from forerun.recipes.mpc.rate import measure_rate
from forerun.recipes.mpc.report import report_page
from forerun.recipes.mpc.studies import STUDIES, NewGoal, Study


def test_a_study_runs_from_nothing_and_goes_on_from_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(damage, "AdaptConfig", partial(AdaptConfig, steps_per_round=2))
    monkeypatch.setattr(study_run, "measure_rate", partial(measure_rate, num_plans=2))
    short = replace(control_task("double-integrator"), num_steps=8, num_episodes=6, horizon=4)
    monkeypatch.setattr(study_run, "control_task", lambda name: short)
    plan = Study(
        task="double-integrator",
        num_train_steps=3,
        batch_size=8,
        num_episodes=2,
        ways=("data", "proposal", "ssr", "joint", "ssr-true", "optimum"),
        new_goals=(NewGoal(name="position", value=0.4, tolerance=5.0),),
        constraint="keep_out(velocity=(5.0, 9.0))",
        num_play_episodes=3,
        num_adapt_rounds=1,
        largest_regret=0.25,
    )
    results = study_run.reproduce(plan, tmp_path)
    assert [row["name"] for row in results["rows"]] == list(plan.ways)
    assert results["extras"]["new_goals"][0]["met_share"] == 1.0, "the tolerance is wider than the line"
    assert results["extras"]["constraint"]["broken"] == 0.0, "nothing is that fast"
    damages = results["extras"]["adaptation"]
    assert [one["defect"] for one in damages] == list(control_task("double-integrator").defects)
    for one in damages:
        assert set(one["rows"]) == {"ssr", "joint", "ssr-true"}
        assert len(one["rows"]["ssr"]["held_out_errors"][0]) == 2
        assert one["rows"]["ssr-true"]["adapted"] != one["rows"]["ssr-true"]["damaged"]
    measured = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    again = study_run.reproduce(plan, tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()} == measured
    again["machine"] = results["machine"]
    assert report_page(json.loads(json.dumps(again))) == report_page(json.loads(json.dumps(results)))


def test_data_is_recorded_in_parts_where_environments_are_heavy():
    task = replace(control_task("double-integrator"), num_steps=5)
    told = []
    whole = collect(task, num_episodes=7, seed=3)
    parts = collect(replace(task, most_envs=3), num_episodes=7, seed=3, on_step=lambda *done: told.append(done))
    assert len(parts.episodes) == 7
    assert [made.states[0].tolist() for made in parts.episodes] == [made.states[0].tolist() for made in whole.episodes]
    assert len({made.actions.tobytes() for made in parts.episodes}) == 7, "no behaviour twice"
    assert told == [(step, 15) for step in range(1, 16)]


def test_the_command_line_knows_every_study_and_task():
    assert set(STUDIES) == set(_STUDIES)
    assert set(TASK_NAMES) == set(_TASKS.split(", "))


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_names_what_there_is(name):
    plan = STUDIES[name]
    assert plan.task in TASK_NAMES
    assert {"ssr"} <= set(plan.ways) <= set(CONTENDERS)


def episodes(*rows):
    made = [
        Episode(
            states=np.array(row, dtype=np.float32)[:, None],
            actions=np.zeros((len(row) - 1, 1), dtype=np.float32),
            rewards=np.zeros(len(row) - 1, dtype=np.float32),
            terminated=True,
        )
        for row in rows
    ]
    return Trajectories(episodes=tuple(made), state_names=("h",), action_names=("a",), source="test")


def test_a_fall_counts_as_time_in_which_the_goal_is_missed():
    found = episodes([0, 1, 1, 1, 1], [0, 1, 1])
    assert _met_share(found, 0, 1.0, 0.05, 4) == pytest.approx((1.0 + 0.5) / 2)


def test_errors_of_episodes_shorter_than_the_window_are_those_of_their_mean():
    assert _late_error(episodes([0, 0, 1, 3]), 0, 1.0, window=20) == pytest.approx(1.0)
    assert _late_error(episodes([0, 0, 1, 3]), 0, 1.0) == pytest.approx(1.0)
