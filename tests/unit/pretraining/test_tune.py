"""Tuning: the descent ends where no neighbour is better, runs come from the store, processes make the same runs."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.core.errors import ConfigError, TrainingError
from forerun.pretraining.config import PretrainConfig
from forerun.pretraining.executor import LocalExecutor
from forerun.pretraining.jobs import Job, tune_loss_of
from forerun.pretraining.ladder import descend
from forerun.pretraining.run_store import read_run
from forerun.pretraining.tune import TuneConfig, standing, tune, tune_json

LADDERS = {"learning_rate": (0.1, 0.2, 0.4, 0.8), "num_epochs": (1, 2, 4, 8, 16)}


def searched(loss, start=None, ladders=LADDERS):
    asked = []

    def evaluate(points):
        asked.extend(tuple(point.values()) for point in points)
        return [loss(**point) for point in points]

    found = descend(ladders, start or {name: rungs[0] for name, rungs in ladders.items()}, evaluate)
    assert len(asked) == len(set(asked)) == found.num_evaluated
    return found


def bowl(learning_rate, num_epochs):
    return math.log2(learning_rate / 0.4) ** 2 + math.log2(num_epochs / 4) ** 2 + 1.0


def test_a_bowl_is_searched_to_its_floor_without_the_whole_grid():
    found = searched(bowl)
    assert found.best == {"learning_rate": 0.4, "num_epochs": 4}
    assert found.loss_nats == 1.0
    assert found.margin_nats == pytest.approx(1.0)
    assert len(found.neighbours) == 4
    assert found.open_ends == ()
    assert found.num_evaluated < 20


@given(st.lists(st.floats(0, 10), min_size=20, max_size=20), st.integers(0, 3), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_on_any_landscape_no_neighbour_is_better_and_each_point_is_asked_once(heights, rate, epochs):
    table = {
        (rate, epochs): heights[row * 5 + column]
        for row, rate in enumerate(LADDERS["learning_rate"])
        for column, epochs in enumerate(LADDERS["num_epochs"])
    }
    start = {"learning_rate": LADDERS["learning_rate"][rate], "num_epochs": LADDERS["num_epochs"][epochs]}
    found = searched(lambda learning_rate, num_epochs: table[learning_rate, num_epochs], start)
    assert found.loss_nats == table[tuple(found.best.values())] <= table[tuple(start.values())]
    at = [rungs.index(found.best[name]) for name, rungs in LADDERS.items()]
    around = [(at[0] + 1, at[1]), (at[0] - 1, at[1]), (at[0], at[1] + 1), (at[0], at[1] - 1)]
    expected = {
        (LADDERS["learning_rate"][row], LADDERS["num_epochs"][column])
        for row, column in around
        if 0 <= row < 4 and 0 <= column < 5
    }
    assert {tuple(neighbour.settings.values()) for neighbour in found.neighbours} == expected
    assert min(neighbour.loss_nats for neighbour in found.neighbours) >= found.loss_nats


def test_an_end_of_a_ladder_is_said_and_settings_that_do_not_train_lose():
    found = searched(lambda learning_rate, num_epochs: math.inf if learning_rate > 0.2 else 1 / num_epochs)
    assert found.best == {"learning_rate": 0.1, "num_epochs": 16}
    assert found.open_ends == ("learning_rate low", "num_epochs high")
    with pytest.raises(TrainingError, match="none of 3 settings"):
        searched(lambda learning_rate, num_epochs: math.inf)


@pytest.mark.parametrize("rungs", [(), (2.0, 1.0), (1.0, 1.0)])
def test_a_ladder_that_does_not_rise_is_refused(rungs):
    with pytest.raises(ConfigError, match="learning_rate"):
        descend({"learning_rate": rungs}, {"learning_rate": 1.0}, lambda points: [0.0 for _ in points])


def test_a_certificate_is_one_only_beyond_the_noise_between_seeds():
    found = searched(bowl)  # its margin is 1
    assert standing(found, [1.0, 1.1, 1.2]) == "certified"
    assert standing(found, [1.0, 1.5, 2.0]) == "certified within noise"
    assert standing(found, [1.0]) == "certified within noise"
    assert standing(searched(lambda learning_rate, num_epochs: 1 / num_epochs), [1.0, 1.0]).startswith("open")


@pytest.fixture
def tune_config(tiny):
    return TuneConfig(
        recipe="standard",
        base=tiny(num_epochs=1, tune_every_epochs=9, unique_tokens=2000),
        learning_rates=(1e-2, 2e-2),
        epochs=(1, 2),
        num_seeds=2,
    )


def test_a_tuning_is_made_of_runs_of_the_store_and_made_once(prepared, tmp_path, tune_config, monkeypatch):
    with LocalExecutor(1) as executor:
        found = tune(prepared, tmp_path, tune_config, executor)
        losses = [found.certificate.loss_nats, *(item.loss_nats for item in found.certificate.neighbours)]
        assert found.certificate.loss_nats == min(losses) == found.seed_losses[0]
        assert found.best.weight_decay == 0.1
        assert [folder.parent for folder in found.folders] == [tmp_path] * 2
        assert len(list(tmp_path.iterdir())) == found.certificate.num_evaluated + 1, "and one more seed"
        monkeypatch.setattr("forerun.pretraining.train.TrainingLoop", None)
        assert tune(prepared, tmp_path, tune_config, executor) == found


def test_a_search_in_the_timescale_keeps_it_while_the_learning_rate_moves(prepared, tmp_path, tiny):
    steps = 7  # of an epoch: 1,999 tokens in batches of 8 x 32
    config = TuneConfig(
        base=tiny(num_epochs=1, unique_tokens=2000, learning_rate=1e-2, weight_decay=1 / (1e-2 * 2 * steps)),
        learning_rates=(5e-3, 1e-2, 2e-2),
        timescales=(1.0, 2.0, 4.0),
        epochs=(1,),
        num_seeds=1,
        search="tau",
    )
    with LocalExecutor(1) as executor:
        found = tune(prepared, tmp_path, config, executor)
    assert found.certificate.best.keys() == {"learning_rate", "decay_timescale_epochs", "num_epochs"}
    settings = [read_run(folder).identity["config"] for folder in tmp_path.iterdir()]
    assert len(settings) == found.certificate.num_evaluated >= 4
    scales = [1 / (run["learning_rate"] * run["weight_decay"] * steps) for run in settings]
    assert all(min(abs(scale / rung - 1) for rung in config.timescales) < 1e-5 for scale in scales)
    at_start = {run["learning_rate"] for run, scale in zip(settings, scales, strict=True) if abs(scale - 2) < 1e-3}
    assert at_start == {5e-3, 1e-2, 2e-2}, "the learning rate is searched along the timescale"
    told = tune_json(found)
    assert (told["search"], told["best_settings"]) == ("tau", found.certificate.best)
    for folder in found.folders:
        result = read_run(folder).result()
        assert result["decay_timescale_epochs"] == pytest.approx(
            found.certificate.best["decay_timescale_epochs"], rel=1e-5
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"search": "wd"}, "must be one of decay, tau"),
        ({"search": "tau", "recipe": "standard"}, "keeps its weight decay"),
        ({"search": "tau", "base": PretrainConfig(weight_decay=0.0)}, "has no timescale"),
    ],
)
def test_a_search_that_can_not_be_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        TuneConfig(**wrong)


def test_processes_make_the_runs_that_one_process_makes_and_a_failure_loses_none(prepared, tmp_path, tiny):
    configs = [tiny(num_epochs=1, seed=seed) for seed in range(2)]
    here = [Job(data=prepared, store=tmp_path / "here", config=config) for config in configs]
    there = [Job(data=prepared, store=tmp_path / "there", config=config) for config in configs]
    bad = Job(data=prepared, store=tmp_path / "there", config=tiny(unique_tokens=99_999_999))
    told = []
    with LocalExecutor(2) as executor:
        runs = executor.make([*there, there[0]], report=lambda done, total, detail: told.append((done, total, detail)))
        executor._news.put((1, 7, 1, 1, "of the first grid, late"))
        with pytest.raises(TrainingError, match=r"1 of 2 runs failed.*unique_tokens=99999999"):
            executor.make([bad, Job(data=prepared, store=tmp_path / "there", config=tiny(num_epochs=1, seed=2))])
    assert told[-1][:2] == (1000, 1000)
    assert told[-1][2].startswith("2 of 2 runs")
    assert runs[0].folder == runs[2].folder
    assert len(list((tmp_path / "there").glob("*/result.json"))) == 3
    expected = LocalExecutor(1).make(here)
    assert [tune_loss_of(run) for run in runs[:2]] == [tune_loss_of(run) for run in expected]


def test_a_run_that_diverges_is_no_result_but_no_failure_either(prepared, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("forerun.pretraining.train.next_token_loss", lambda decoder, ids: decoder(ids).sum() * math.inf)
    assert LocalExecutor(1).make([Job(data=prepared, store=tmp_path, config=tiny())]) == [None]
    with pytest.raises(ConfigError, match="num_workers=0"):
        LocalExecutor(0)
