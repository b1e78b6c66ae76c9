"""Snapshots: each goes on from the one before, is a run of its own, and an ensemble of them can be written."""

import json

import pytest
import torch

from forerun.cli.main import main
from forerun.core.errors import ConfigError
from forerun.pretraining.ensemble import load_member, read_ensemble
from forerun.pretraining.snapshots import SnapshotConfig, train_snapshots
from forerun.pretraining.train import pretrain


def distance(first, second):
    pairs = zip(load_member(first).parameters(), load_member(second).parameters(), strict=True)
    return sum(float((one - other).detach().square().sum()) for one, other in pairs) ** 0.5


def divergence(corpus, first, second):
    ids = torch.from_numpy(corpus.tune.ids[:400].astype("int64")).view(-1, 20)
    with torch.no_grad():
        log_p, log_q = (load_member(run)(ids).log_softmax(dim=-1) for run in (first, second))
    return float((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean())


@pytest.fixture(scope="module")
def rows(corpus, tiny, tmp_path_factory):
    store = tmp_path_factory.mktemp("snapshots")
    kinds = {
        "snapshots": SnapshotConfig(cycle=tiny(seed=3), num_cycles=3),
        "chained": SnapshotConfig(cycle=tiny(seed=3), num_cycles=2, chain_weight=0.9, start="fresh"),
        "independent": SnapshotConfig(cycle=tiny(seed=3), num_cycles=2, start="fresh"),
    }
    return store, {name: train_snapshots(corpus, store, kind) for name, kind in kinds.items()}, kinds


def test_a_snapshot_goes_on_from_the_one_before_and_a_fresh_member_does_not(rows):
    _, runs, _ = rows
    first, second, third = runs["snapshots"]
    other = runs["independent"][1]
    assert distance(second, first) < 0.5 * distance(other, first)
    assert distance(third, second) < distance(third, first)
    losses = [run.result()["tune"]["loss_nats"] for run in (first, second)]
    assert losses[1] < losses[0], "the second cycle begins where the first ended"


def test_a_member_of_a_chain_is_closer_to_the_one_before_than_an_independent_one(rows, corpus):
    _, runs, _ = rows
    assert divergence(corpus, *runs["chained"]) < 0.9 * divergence(corpus, *runs["independent"])


def test_members_are_runs_made_once_and_named_by_what_they_go_back_to(rows, corpus, tiny, monkeypatch):
    store, runs, kinds = rows
    names = {name: [run.folder.name for run in members] for name, members in runs.items()}
    assert len({members[0] for members in names.values()}) == 1, "the first is the plain run"
    assert pretrain(corpus, store, tiny(seed=3)).folder.name == names["snapshots"][0]
    assert pretrain(corpus, store, tiny(seed=4)).folder.name == names["independent"][1]
    assert len({*names["snapshots"], *names["chained"], *names["independent"]}) == 5
    assert runs["snapshots"][2].identity["previous"] == names["snapshots"][1]
    monkeypatch.setattr("forerun.pretraining.train.TrainingLoop", None)
    told = []
    again = train_snapshots(
        corpus, store, kinds["snapshots"], report=lambda done, total, detail: told.append((done, total))
    )
    assert [run.folder for run in again] == [run.folder for run in runs["snapshots"]]
    assert told == []


def test_the_command_trains_averages_and_writes_an_ensemble(prepared, tmp_path, capsys):
    report, folder = tmp_path / "found.json", tmp_path / "pair"
    command = [
        *("pretrain", "snapshots", "--data", str(prepared), "--out", str(tmp_path / "runs"), "--size", "6k"),
        *("--epochs", "1", "--cycles", "2", "--chain-weight", "0.5", "--unique-tokens", "1500"),
        *("--sequence-tokens", "16", "--write", str(folder), "--json", str(report)),
    ]
    assert main(command) == 0
    assert json.loads(report.read_text())["by_count"]["probability"][1]["loss_nats"] > 0
    assert len(read_ensemble(folder).members) == 2
    assert "cycle 2" in capsys.readouterr().out
    assert main([*command, "--cycles", "0"]) == 2


@pytest.mark.parametrize("wrong", [{"num_cycles": 0}, {"chain_weight": 1.5}, {"start": "last"}])
def test_options_out_of_range_are_refused(wrong):
    [name] = wrong
    with pytest.raises(ConfigError, match=f"{name}="):
        SnapshotConfig(**wrong)
