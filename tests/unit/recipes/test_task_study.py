"""The study of a task: who is in its table, what it keeps, what it is held to."""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
from simulated.worlds import TINY_COLLECT, tiny_train

from forerun.core.errors import ConfigError
from forerun.recipes.world import task_study
from forerun.recipes.world.planners import PlanConfig
from forerun.recipes.world.task_study import TaskStudy, study_task
from forerun.worldmodels.cloning import CloningConfig
from forerun.worldmodels.jepa.encoder import CnnConfig
from forerun.worldmodels.jepa.inverse import InverseConfig

PLAN = PlanConfig(horizon=5, num_samples=8, num_elites=2, num_iterations=1)
STUDY = TaskStudy(
    collect=replace(TINY_COLLECT, num_episodes=20),
    train=replace(
        tiny_train(num_steps=60, monitor_every=30, learning_rate=5e-3),
        objective=replace(tiny_train().objective, weight=0.2),
    ),
    control_steps=20,
    clone=CloningConfig(encoder=CnnConfig(image_size=16, num_channels=2, width=8), num_steps=3, batch_size=8),
    ways={"": PLAN, "replanned": replace(PLAN, execute_horizon=1, num_proposals=2, cost_at="every")},
    num_tasks=3,
    seeds=(0, 1),
    least_success={"near": 1.01},
    least_r2={"x": 0.4},
)
NAMES = ["random", "cloned policy", "world model", "world model, replanned", "lambda = 0", "expert"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def found(folder):
    with pytest.MonkeyPatch.context() as patch:  # guesses and probes of a few steps: what they say doesn't matter here
        patch.setattr(task_study, "InverseConfig", partial(InverseConfig, num_steps=3, width=8))
        patch.setattr(task_study, "mlp_probe_r2", lambda model, seen, held_out: {"x": 0.5, "y": 0.5})
        return study_task(folder, STUDY)


def test_everybody_is_in_one_table(found, folder):
    assert [row["name"] for row in found.numbers["success"]] == NAMES
    assert [row["num_tasks"] for row in found.numbers["success"]] == [6] * 6
    by_seed = found.numbers["by_seed"]
    assert [row["name"] for row in by_seed[1]["success"]] == NAMES
    for place, row in enumerate(found.numbers["success"]):
        assert row["num_successes"] == sum(part["success"][place]["num_successes"] for part in by_seed)
    assert by_seed[0]["runs"]["lambda = 0"]["num_steps"] == 20
    assert (folder / "report.md").read_text(encoding="utf-8").count("by seed") == 6
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == found.numbers


def test_it_is_held_to_its_bars(found):
    bars = {bar["name"]: bar["is_met"] for bar in found.numbers["bars"]}
    assert len(bars) == 5
    assert not next(met for name, met in bars.items() if name.startswith("success, near ("))
    assert bars["R² of x, small network"]
    for floor in ("random", "lambda = 0", "cloned policy"):
        assert f"success, near, above {floor}" in bars


def test_what_is_done_is_kept_and_only_what_changed_is_made_anew(found, folder, tmp_path, monkeypatch):
    copy = tmp_path / "study"
    shutil.copytree(folder, copy)
    played = []

    def evaluate(contenders, *_, **__):
        played.append(list(contenders))
        return [], {}

    monkeypatch.setattr(task_study, "evaluate", evaluate)
    assert study_task(copy, STUDY).numbers == found.numbers
    assert not played
    study_task(copy, replace(STUDY, ways={"": PLAN, "replanned": replace(PLAN, execute_horizon=2)}, seeds=(0,)))
    assert played == [["world model, replanned"]]


def test_a_study_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least one of each"):
        replace(STUDY, seeds=())
