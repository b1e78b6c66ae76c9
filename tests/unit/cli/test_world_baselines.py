"""``forerun world clone``, ``plan --clone`` and ``import``: what they print and refuse."""

import json

import pytest

from forerun.cli.main import main
from forerun.recipes.world.findings import Findings
from forerun.recipes.world.task_studies import STUDIES


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "rooms"
    assert main(["world", "collect", "--out", str(folder), "--episodes", "12", "--env-steps", "50"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(rooms, tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "run"
    command = ["world", "train", "--data", str(rooms), "--out", str(out), "--config", "smoke", "--steps", "4"]
    assert main([*command, "--batch-size", "8", "--keep-going"]) == 0
    return out


def test_a_cloned_policy_acts_beside_the_model(rooms, run, tmp_path, capsys):
    cloned = ["clone", "--data", str(rooms), "--out", str(tmp_path / "cloned"), "--steps", "3", "--batch-size", "8"]
    assert main(["world", *cloned, "--json", str(tmp_path / "clone.json")]) == 0
    assert set(json.loads((tmp_path / "clone.json").read_text())) == {"num_params", "final_loss"}
    plan = ["plan", "--model", str(run / "model"), "--data", str(rooms), "--clone", str(tmp_path / "cloned")]
    sizes = ["--tasks", "2", "--samples", "4", "--elites", "2", "--iterations", "1"]
    assert main(["world", *plan, *sizes, "--json", str(tmp_path / "plan.json")]) == 0
    rows = json.loads((tmp_path / "plan.json").read_text())["success"]
    assert [row["name"] for row in rows] == ["random", "cloned policy", "world model", "expert"]
    assert "cloned policy" in capsys.readouterr().out


def test_other_tasks_have_studies_of_their_own(tmp_path, capsys, monkeypatch):
    asked = []

    def study_task(folder, study, *, report):
        asked.append((folder, study))
        return Findings(lines=["a table"], numbers={"bars": []})

    monkeypatch.setattr("forerun.recipes.world.task_study.study_task", study_task)
    command = ["world", "reproduce", "--task", "push-t", "--seeds", "2", "--out", str(tmp_path)]
    assert main([*command, "--json", str(tmp_path / "found.json")]) == 0
    assert "a table" in capsys.readouterr().out
    assert asked == [(tmp_path, STUDIES["push-t"].with_seeds(2))]
    assert json.loads((tmp_path / "found.json").read_text()) == {"bars": []}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--data", "{rooms}", "--model", "{run}/model", "--protocol", "push"], "protocol 'push'"),
        (
            ["plan", "--data", "{rooms}", "--model", "{run}/model", "--tasks", "2", "--clone", "{tmp}"],
            "no readable cloned policy",
        ),
        (
            ["plan", "--data", "{rooms}", "--model", "{run}/model", "--tasks", "2", "--stable-worldmodel"],
            "scores push-t",
        ),
        (["reproduce", "--task", "push-t", "--scale", "smoke", "--out", "{tmp}"], "leave --scale out"),
        (["reproduce", "--task", "push-t", "--seeds", "0", "--out", "{tmp}"], "num_seeds=0"),
        (["plan", "--data", "{rooms}", "--model", "{run}/model", "--context", "0"], "num_context=0"),
        (
            ["plan", "--data", "{rooms}", "--model", "{run}/model", "--goal", "landmarks", "--cost-at", "every"],
            "costs of a last state",
        ),
        (["collect", "--out", "{tmp}/new", "--task", "push-t", "--vary", "color"], "'push-t' are none"),
        (["import", "{tmp}/nothing", "--out", "{tmp}/new"], "neither a file nor a folder"),
        (["import", "{tmp}", "--out", "{tmp}/new"], "folder of a LeRobot data set"),
    ],
)
def test_bad_input_is_one_line(arguments, message, rooms, run, tmp_path, capsys):
    if arguments[0] == "import":
        pytest.importorskip("av")
    capsys.readouterr()
    filled = [argument.format(tmp=tmp_path, rooms=rooms, run=run) for argument in arguments]
    assert main(["world", *filled]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
