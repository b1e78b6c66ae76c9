"""``forerun world`` from recording to surprise, and its refusals."""

import json

import pytest
import torch

from forerun.cli.main import main


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "rooms"
    assert main(["world", "collect", "--out", str(folder), "--episodes", "30", "--env-steps", "50"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(rooms, tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "run"
    command = ["world", "train", "--data", str(rooms), "--out", str(out), "--config", "smoke", "--steps", "60"]
    assert main([*command, "--batch-size", "16", "--lambda", "0.2"]) == 0
    return out


def test_train_probe_plan_and_be_surprised(rooms, run, tmp_path, capsys):
    threads = torch.get_num_threads()
    both = ["--model", str(run / "model"), "--data", str(rooms), "--json"]
    capsys.readouterr()
    assert main(["world", "probe", *both, str(tmp_path / "probe.json")]) == 0
    assert "R² of x: " in capsys.readouterr().out
    probed = json.loads((tmp_path / "probe.json").read_text())
    assert probed["embedding_std"] > 0.25
    assert set(probed["mlp_probe_r2"]) == set(probed["probe_r2"]) == {"x", "y"}
    plan = ["--tasks", "4", "--samples", "8", "--elites", "3", "--iterations", "1"]
    assert main(["world", "plan", *both, str(tmp_path / "plan.json"), *plan]) == 0
    out = capsys.readouterr().out
    assert "lambda = 0: no control given" in out
    rows = json.loads((tmp_path / "plan.json").read_text())["success"]
    assert [row["name"] for row in rows] == ["random", "world model", "expert"]
    assert rows[2]["success_rate"] == 1.0
    surprise = ["--episodes", "6", "--calibration", "8", "--rate", "0.1"]
    assert main(["world", "surprise", *both, str(tmp_path / "surprise.json"), *surprise]) == 0
    assert set(json.loads((tmp_path / "surprise.json").read_text())["events"]) == {"teleport", "color", "dynamics"}
    torch.set_num_threads(threads)


def test_several_models_pursue_what_is_wanted_in_words(rooms, run, tmp_path, capsys):
    again = tmp_path / "again"
    train = ["world", "train", "--data", str(rooms), "--out", str(again), "--config", "smoke", "--steps", "2"]
    assert main([*train, "--batch-size", "8", "--seed", "1", "--keep-going"]) == 0
    capsys.readouterr()
    models = ["--model", str(run / "model"), "--model", str(again / "model"), "--kappa", "1"]
    wish = ["--objective", "any_of(near(x=40), goal())", "--constraint", "keep_out(y=(0, 20))", "--head", "linear"]
    plan = [
        "--tasks",
        "2",
        "--samples",
        "8",
        "--elites",
        "3",
        "--iterations",
        "1",
        "--json",
        str(tmp_path / "plan.json"),
    ]
    assert main(["world", "plan", "--data", str(rooms), *models, *wish, *plan]) == 0
    assert "world model                      ended at x " in capsys.readouterr().out
    found = json.loads((tmp_path / "plan.json").read_text())
    assert [one["name"] for one in found["pursued"]] == ["random", "world model", "expert"]
    assert found["plan"]["kappa"] == 1.0


def test_a_collapsing_run_ends_with_the_reason(rooms, tmp_path, capsys):
    command = ["world", "train", "--data", str(rooms), "--out", str(tmp_path / "run"), "--config", "smoke"]
    assert main([*command, "--steps", "20", "--batch-size", "8", "--lambda", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("forerun: error: step 20: embeddings shrink to a point")
    assert error.count("\n") == 1


def test_lambda_is_searched(rooms, tmp_path, capsys, monkeypatch):
    def train_world(dataset, folder, config, **_):
        numbers = {"embedding_std": 1.0, "effective_rank": 6.0 if config.objective.weight > 0.03 else 2.0}
        numbers |= dict.fromkeys(("gaussianity", "prediction_over_copying", "action_sensitivity", "straightness"), 0.5)
        return {"health": numbers | {"probe_r2": {}}}

    monkeypatch.setattr("forerun.worldmodels.jepa.tune.train_world", train_world)
    tune = ["world", "tune", "--data", str(rooms), "--out", str(tmp_path), "--config", "smoke", "--trials", "4"]
    assert main([*tune, "--low", "0.01", "--high", "0.16", "--json", str(tmp_path / "found.json")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in out if line.startswith("lambda")] == ["0.16", "0.01", "0.04", "0.02"]
    assert out[-1] == "--lambda 0.04; 0.02 is too low"
    assert json.loads((tmp_path / "found.json").read_text())["weight"] == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "--data", "{rooms}", "--out", "{tmp}/tune", "--low", "2"], "low < high"),
        (["train", "--data", "{rooms}", "--out", "{tmp}/run", "--subspaces", "40"], "num_subspaces=40"),
        (["collect", "--out", "{tmp}/new", "--resolution", "4"], "resolution=4"),
        (["collect", "--out", "{rooms}", "--episodes", "7"], "other options"),
        (["train", "--data", "{tmp}", "--out", "{tmp}/run"], "manifest.json: is missing"),
        (["train", "--data", "{rooms}", "--out", "{tmp}/run", "--config", "paper"], "this model takes 224 x 224"),
        (["train", "--data", "{rooms}", "--out", "{tmp}/run", "--lambda", "-1"], "lambda=-1"),
        (["probe", "--data", "{rooms}", "--model", "{tmp}"], "holds no readable world model"),
        (["plan", "--data", "{rooms}", "--model", "{run}/model", "--tasks", "5000"], "5000 tasks"),
        (["plan", "--data", "{rooms}", "--model", "{run}/model", "--execute", "9"], "execute_horizon=9"),
        (["plan", "--data", "{rooms}", "--model", "{run}/model", "--kappa", "1"], "agrees with itself"),
        (["plan", "--data", "{rooms}", "--model", "{run}/model", "--constraint", "keep_in(x=(0, 1))"], "--objective"),
        (["plan", "--data", "{rooms}", "--model", "{run}/model", "--objective", "near(z=1)"], "number of the state"),
        (["surprise", "--data", "{rooms}", "--model", "{run}/model", "--rate", "1.5"], "false_alarm_rate=1.5"),
    ],
)
def test_bad_input_is_one_line(arguments, message, rooms, run, tmp_path, capsys):
    capsys.readouterr()
    filled = [argument.format(tmp=tmp_path, rooms=rooms, run=run) for argument in arguments]
    assert main(["world", *filled]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
