"""The search for lambda: halving on a logarithmic scale, verdicts of the monitor, what is not made again."""

import math
from dataclasses import replace

import pytest
from simulated.worlds import tiny_dataset, tiny_train

from forerun.core.errors import CollapseError, ConfigError
from forerun.worldmodels.jepa import tune as module
from forerun.worldmodels.jepa.health import Health
from forerun.worldmodels.jepa.tune import TuneConfig, tune_lambda, verdict

HEALTHY = Health(
    embedding_std=1.0, effective_rank=6.0, gaussianity=1.2, prediction_over_copying=0.1, action_sensitivity=0.9,
    straightness=0.1, probe_r2={},
)  # fmt: skip


def searched(monkeypatch, tmp_path, *, least, config):
    """Search where runs are healthy from a lambda on, without training."""
    tried = []

    def train_world(dataset, folder, train, **_):
        weight = train.objective.weight
        tried.append(weight)
        assert train.num_steps == config.num_steps
        if weight < least / 4:
            raise CollapseError("step 5: embeddings shrink to a point; take more")
        rank = 6.0 if weight >= least else 1.0
        return {"health": replace(HEALTHY, effective_rank=rank).to_json()}

    monkeypatch.setattr(module, "train_world", train_world)
    return tune_lambda(tiny_dataset(), tmp_path, tiny_train(), config), tried


@pytest.mark.parametrize("least", [0.0015, 0.03, 0.9])
def test_bisection_closes_in_on_the_least_healthy_lambda(monkeypatch, tmp_path, least):
    config = TuneConfig(low=1e-3, high=1.0, num_trials=10, num_steps=7)
    found, tried = searched(monkeypatch, tmp_path, least=least, config=config)
    assert found.unhealthy_weight < least <= found.weight
    # Eight halvings of ln(1000).
    assert math.log(found.weight / found.unhealthy_weight) == pytest.approx(math.log(1000) / 2**8)
    assert tried[:2] == [1.0, 1e-3]
    assert [trial.weight for trial in found.trials] == tried
    assert ("shrink to a point" in found.trials[1].why) == (least > 0.004)


def test_ends_of_the_interval(monkeypatch, tmp_path):
    config = TuneConfig(num_steps=7)
    found, tried = searched(monkeypatch, tmp_path, least=1e-4, config=config)
    assert (found.weight, found.unhealthy_weight) == (1e-3, None)
    assert len(tried) == 2
    with pytest.raises(CollapseError, match=r"lambda = 1: .* --high"):
        searched(monkeypatch, tmp_path, least=2.0, config=config)
    for wrong in ({"low": 0.0}, {"high": 1e-4}, {"num_trials": 2}, {"num_steps": 0}):
        with pytest.raises(ConfigError):
            TuneConfig(**wrong)


def test_verdicts_need_spread_rank_and_prediction():
    config = TuneConfig()
    assert verdict(HEALTHY, config)[0]
    for worse in ({"embedding_std": 0.7}, {"effective_rank": 3.9}, {"prediction_over_copying": 0.9}):
        assert not verdict(replace(HEALTHY, **worse), config)[0]
    assert not verdict(replace(HEALTHY, embedding_std=float("nan")), config)[0]


def test_real_runs_collapse_below_and_are_kept(tmp_path):
    dataset, train = tiny_dataset(), tiny_train(learning_rate=5e-3)
    config = TuneConfig(low=1e-4, high=0.3, num_trials=3, num_steps=50, least_std=0.3, least_rank=1.5, most_error=9.0)
    found = tune_lambda(dataset, tmp_path, train, config)
    assert [trial.is_healthy for trial in found.trials][:2] == [True, False]
    assert found.weight > 1e-4
    steps = []
    again = tune_lambda(dataset, tmp_path, train, config, report=lambda done, total, detail: steps.append(detail))
    assert again == found
    assert not any("lambda 0.3" in step for step in steps)  # its run is there already
