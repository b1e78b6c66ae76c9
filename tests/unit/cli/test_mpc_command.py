"""``forerun mpc``: from a recording to plans and adapted plans, in miniature; bad input in one line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from forerun.cli.main import main
from forerun.cli.mpc_plan import _PLANNERS
from forerun.core.control import History
from forerun.planning.drift_watch import DriftWatch
from forerun.recipes.mpc.adapt import Adaptation
from forerun.recipes.mpc.contenders import CONTENDERS, opened, task_objective
from forerun.worldmodels.diffusion.bundle import ModelBundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data and barely trained models of the double integrator."""
    folder = tmp_path_factory.mktemp("mpc")
    task = ["--task", "double-integrator"]
    assert main(["mpc", "collect", *task, "--episodes", "12", "--out", str(folder / "data.npz")]) == 0
    arguments = ["--data", str(folder / "data.npz"), "--out", str(folder / "models"), "--steps", "25"]
    assert main(["mpc", "train", *task, *arguments, "--batch-size", "32"]) == 0
    return folder


def plan(folder, *options, models="models"):
    found = folder / "found.json"
    assert main(["mpc", "plan", "--models", str(folder / models), "--episodes", "2", "--samples", "8", *options,
                 "--json", str(found)]) == 0  # fmt: skip
    return json.loads(found.read_text())


def test_planning_gives_returns_and_repeats_itself(folder):
    first, again = plan(folder), plan(folder)
    assert len(first["returns"]) == 2
    assert first["returns"] == again["returns"]
    assert first["num_failed"] == 0
    assert plan(folder, "--seed", "1")["returns"] != first["returns"]


def test_models_that_are_loaded_are_those_that_were_saved(folder):
    bundle = ModelBundle.load(folder / "models")
    bundle.save(folder / "copy", record={})
    assert plan(folder, models="copy")["returns"] == plan(folder)["returns"]


def test_a_new_objective_changes_what_is_done(folder):
    right = plan(folder, "--objective", "10 * near(position=2.0)", "--planner", "random")
    left = plan(folder, "--objective", "10 * near(position=-2.0)", "--planner", "random")
    assert right["mean_late_state"]["position"] > left["mean_late_state"]["position"] + 0.5


def test_a_constraint_is_taken(folder):
    plan(folder, "--constraint", "keep_in(velocity=(-5.0, 5.0))")


def test_limits_that_no_plan_keeps_are_counted_and_have_a_fallback(folder, capsys):
    nowhere = ("--constraint", "keep_in(velocity=(50.0, 60.0))", "--planner", "random")
    found = plan(folder, *nowhere)
    assert found["num_infeasible"] == 2 * 50
    assert "in 100 of 100 steps no plan kept them, and the least bad plan acted" in capsys.readouterr().out
    resting = plan(folder, *nowhere, "--fallback", "rest")
    # At rest the mass keeps the velocity that it began with.
    assert abs(resting["mean_late_state"]["velocity"]) <= 0.25 < abs(found["mean_late_state"]["velocity"])


def test_planning_ahead_says_how_often_it_was_right(folder):
    found = plan(folder, "--speculate", "2", "--episodes", "1")["speculation"]
    assert 0.0 <= found["hit_rate"] <= 1.0
    assert found["ahead_ms"] > 0


def test_the_parts_of_the_task_are_words_of_their_own(folder):
    whole, parts = (plan(folder, "--objective", text)["returns"] for text in ("task()", "reward() + value()"))
    assert whole == parts
    assert plan(folder, "--objective", "reward()")["returns"] != whole


def test_a_gif_is_written(folder):
    pytest.importorskip("matplotlib")
    plan(folder, "--render", str(folder / "episode.gif"))
    assert (folder / "episode.gif").read_bytes().startswith(b"GIF89a")


def test_a_task_may_ask_the_value_on_the_way(folder):
    """Ends that are worth a million change nothing where the value after the first step is asked too."""
    setting = opened(folder / "models")
    task = replace(setting.task, value_depths=(1, 16))
    history = History.of_present(torch.zeros(1, 2), action_dim=1)
    states, actions = torch.zeros(1, 1, 16, 2), torch.zeros(1, 1, 16, 1)
    bundle = replace(setting.bundle, state_value=lambda states: 1e6 * (states[..., 0] > 0.5))
    near, far = (task_objective(of, bundle).score(history, states + (torch.arange(16) == 15)[:, None], actions)
                 for of in (task, setting.task))  # fmt: skip
    assert float(near) < 10 < float(far)


def test_models_that_see_a_history_plan_with_it(folder):
    arguments = ["--data", str(folder / "data.npz"), "--out", str(folder / "seeing"), "--history", "3"]
    assert main(["mpc", "train", "--task", "double-integrator", *arguments, "--steps", "2", "--batch-size", "4"]) == 0
    assert ModelBundle.load(folder / "seeing").config.history == 3
    assert len(plan(folder, models="seeing")["returns"]) == 2


def test_every_planner_that_can_be_named_is_in_the_help():
    other = {"data", "joint", "optimum"}
    assert set(_PLANNERS) == set(CONTENDERS) - other


def test_adapting_changes_the_dynamics_and_nothing_else(folder):
    collected = ["mpc", "collect", "--task", "double-integrator", "--defect", "--episodes", "6"]
    assert main([*collected, "--out", str(folder / "play.npz")]) == 0
    arguments = ["--models", str(folder / "models"), "--play", str(folder / "play.npz"), "--rounds", "1"]
    assert main(["mpc", "adapt", *arguments, "--steps", "20", "--out", str(folder / "adapted")]) == 0
    before, after = (ModelBundle.load(folder / name).modules for name in ("models", "adapted"))
    changed = {
        name
        for name, module in before.items()
        if any((value != after[name].state_dict()[key]).any() for key, value in module.state_dict().items())
    }
    assert changed == {"dynamics"}


def test_curves_of_every_model_are_written_for_tensorboard(folder, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("FORERUN_TRACKERS", "")
    arguments = ["--task", "double-integrator", "--data", str(folder / "data.npz"), "--out", str(folder / "curves")]
    assert main(["mpc", "train", *arguments, "--steps", "2", "--batch-size", "4", "--tensorboard"]) == 0
    written = {path.parent.parent.name for path in (folder / "curves.checkpoints").glob("*/tensorboard/events*")}
    assert written == {"proposal", "dynamics", "plan-value", "state-value", "one-step", "cloning"}


def test_a_recording_of_the_healthy_world_watches_for_drift_and_predictions_are_drawn(folder):
    pytest.importorskip("matplotlib")
    pictures = [folder / "seen.png", folder / "drift.png"]
    plan(folder, "--record", str(folder / "healthy.npz"), "--planner", "cloning", "--plot", str(pictures[0]))
    watched = ["--watch-drift", str(folder / "healthy.npz"), "--planner", "cloning"]
    assert plan(folder, *watched)["alarms"] == [None, None], "the very episodes of the calibration"
    assert len(plan(folder, *watched, "--defect", "--plot", str(pictures[1]))["alarms"]) == 2
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_after_an_alarm_the_dynamics_are_tuned_on_what_was_seen_since(folder, monkeypatch):
    plan(folder, "--record", str(folder / "healthy.npz"), "--planner", "cloning")
    told = []

    def adapt(bundle, play, *, replay, config):
        told.append((play, replay))
        return Adaptation(bundle=bundle, errors=(1.0,))

    monkeypatch.setattr("forerun.recipes.mpc.act.adapt", adapt)
    watched = ["--watch-drift", str(folder / "healthy.npz"), "--adapt-after", "4"]
    monkeypatch.setattr(DriftWatch, "alarms", property(lambda self: [None, None]))
    assert plan(folder, *watched)["adapted_at"] is None
    monkeypatch.setattr(DriftWatch, "alarms", property(lambda self: [None, 1]))
    assert plan(folder, *watched)["adapted_at"] == 4
    [(play, replay)] = told
    assert [episode.states.shape for episode in play.episodes] == [(5, 2)] * 2
    assert len(replay.episodes) == 2
    assert main(["mpc", "plan", "--models", str(folder / "models"), "--adapt-after", "4"]) == 2, "nobody watches"


def test_planning_in_a_thread_while_steps_last(folder):
    found = plan(folder, "--step-ms", "1", "--planner", "cloning")
    assert found["num_failed"] == 0
    assert 0 <= found["num_late"] < 50


def test_a_distilled_policy_acts_and_is_supervised(folder):
    distilled, found = folder / "policy", folder / "distilled.json"
    small = ["--rounds", "2", "--episodes", "2", "--steps", "20", "--samples", "4", "--evaluate", "2"]
    arguments = ["mpc", "distill", "--models", str(folder / "models"), "--out", str(distilled), "--planner", "cloning"]
    assert main([*arguments, *small, "--json", str(found)]) == 0
    measured = json.loads(found.read_text())["measured"]
    alone = plan(folder, "--policy", str(distilled))
    assert alone["returns"] == pytest.approx(measured["policy"]["returns"])
    assert alone["planned_share"] == 0.0
    assert plan(folder, "--policy", str(distilled), "--supervise", "--planner", "cloning")["planned_share"] < 1.0


def test_the_bench_finds_what_nothing_beats(folder):
    found = folder / "bench.json"
    small = ["--samples", "2", "--steps", "1/1", "--episodes", "1", "--plans", "1", "--json", str(found)]
    assert main(["mpc", "bench", "--models", str(folder / "models"), *small]) == 0
    rows = json.loads(found.read_text())["rows"]
    best = max(rows, key=lambda row: row["return"])
    assert best["is_unbeaten"]
    assert rows[0]["is_unbeaten"], "the fastest"
    for row in rows:
        beaten = any(other["return"] > row["return"] and other["plan_cpu_ms"] < row["plan_cpu_ms"] for other in rows)
        assert row["is_unbeaten"] != beaten


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--supervise"], "needs a distilled policy"),
        (["--step-ms", "0"], "must be above 0"),
        (["--speculate", "--step-ms", "5"], "goes with a planner that the world waits for"),
        (["--speculate", "0"], "num_guesses=0"),
        (["--policy", "/nowhere"], "holds no policy for these models"),
        (["--objective", "speed("], "can't be read"),
        (["--objective", "fly()"], "fly: unknown word of an objective"),
        (["--objective", "task() - unfamiliar(2)"], "unfamiliar takes other arguments"),
        (["--objective", "near(height=1)"], "height: unknown number of the state"),
        (["--objective", "2 + 3"], "is a number"),
        (["--objective", "__import__('os')"], "unknown word"),
        (["--objective", "task().score"], "can't read"),
        (["--constraint", "energy()"], "must be keep_out"),
        (["--planner", "ssrr"], "did you mean ssr?"),
        (["--defect", "biassed"], "unknown defect of double-integrator; did you mean biased?"),
        (["--episodes", "0"], "--episodes 0: must be at least 1"),
        (["--deadline-ms", "0"], "deadline_s=0.0: must be above 0"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, arguments, message):
    assert main(["mpc", "plan", "--models", str(folder / "models"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_study_of_nothing_is_refused(tmp_path, capsys):
    assert main(["mpc", "reproduce", "--task", "smoke", "--out", str(tmp_path), "--seeds", "0"]) == 2
    assert "num_seeds=0" in capsys.readouterr().err


def test_a_folder_without_models(tmp_path, capsys):
    assert main(["mpc", "plan", "--models", str(tmp_path)]) == 2
    assert "holds no models of D-MPC" in capsys.readouterr().err


def test_data_with_a_gap_is_refused(tmp_path, capsys):
    states = np.zeros((4, 2))
    states[2, 1] = np.nan
    ends = np.array([False, False, False, True])
    np.savez(tmp_path / "mine.npz", observations=states, actions=np.zeros((4, 1)), rewards=np.zeros(4), timeouts=ends)
    arguments = ["--data", str(tmp_path / "mine.npz"), "--out", str(tmp_path / "models")]
    assert main(["mpc", "train", "--task", "double-integrator", *arguments]) == 2
    assert "states[2, 1] is nan" in capsys.readouterr().err


def test_actions_outside_their_box_are_refused(tmp_path, capsys):
    ends = np.arange(30) == 29
    np.savez(tmp_path / "mine.npz", observations=np.zeros((30, 2)), actions=np.full((30, 1), 3.0), rewards=np.zeros(30),
             timeouts=ends)  # fmt: skip
    arguments = ["--data", str(tmp_path / "mine.npz"), "--out", str(tmp_path / "models")]
    assert main(["mpc", "train", "--task", "double-integrator", *arguments]) == 2
    assert "action 'force' is 3 at step 0" in capsys.readouterr().err
