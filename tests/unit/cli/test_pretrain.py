"""``forerun pretrain`` from a folder of text to an ensemble, and its refusals."""

import json
import random

import pytest
import torch

from forerun.cli.main import main

WORDS = ("duck", "river", "stone", "lamp", "garden", "letter", "window", "road", "cloud", "spoon")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for seed in range(40):
        rng = random.Random(seed)
        (folder / f"{seed}.txt").write_text(" ".join(rng.choice(WORDS) for _ in range(600)))
    return folder


def test_from_text_to_an_ensemble(texts, tmp_path, capsys):
    threads = torch.get_num_threads()
    data, runs = tmp_path / "data", tmp_path / "runs"
    assert main(["pretrain", "prepare", str(texts), "--out", str(data), "--vocab-size", "300"]) == 0
    command = ["pretrain", "train", "--data", str(data), "--out", str(runs), "--size", "25k", "--epochs", "1"]
    for seed in ("0", "1", "0"):
        report = tmp_path / f"{seed}.json"
        assert main([*command, "--unique-tokens", "5000", "--seed", seed, "--json", str(report)]) == 0
    first, second = (json.loads((tmp_path / f"{seed}.json").read_text()) for seed in (0, 1))
    assert len(list(runs.iterdir())) == 2
    assert first["result"]["tune"]["loss_nats"] != second["result"]["tune"]["loss_nats"]
    capsys.readouterr()
    found = tmp_path / "ensemble.json"
    folders = [first["run"], second["run"]]
    checkpoint = tmp_path / "both"
    assert (
        main(["pretrain", "ensemble", *folders, "--data", str(data), "--out", str(checkpoint), "--json", str(found)])
        == 0
    )
    result = json.loads(found.read_text())
    assert [loss["loss_nats"] for loss in result["member_losses"]] == pytest.approx(
        [report["result"]["tune"]["loss_nats"] for report in (first, second)], abs=1e-6
    )
    assert f"{result['by_count']['probability'][1]['loss_nats']:.4f}" in capsys.readouterr().out
    assert json.loads((checkpoint / "ensemble.json").read_text())["members"] == folders
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["prepare", "{}/nothing", "--out", "{}/data"], "no such file or folder"),
        (["prepare", "default", "--out", "{}/data", "--vocab-size", "3"], "vocab_size=3"),
        (["train", "--data", "{}", "--out", "{}/runs"], "has no manifest.json"),
        (["ensemble", "{}/run", "--data", "{}"], "has no manifest.json"),
        (["tune", "--data", "{}", "--out", "{}/runs", "--address", "auto"], "are for --executor ray"),
        (["tune", "--data", "{}", "--out", "{}/runs", "--gpus-per-run", "0.5"], "are for --executor ray"),
        (["reproduce", "--out", "{}/study", "--executor", "ray", "--gpus-per-run", "1.5"], "gpus_per_run=1.5"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, message, tmp_path, capsys, monkeypatch):
    if "default" in command:  # the vocabulary is wrong, whatever the corpus
        monkeypatch.setattr("forerun.data.corpus.read_standard_library", lambda: pytest.fail("read before the check"))
    assert main(["pretrain", *(part.format(tmp_path) for part in command)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
