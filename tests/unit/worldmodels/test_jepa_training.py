"""Training: a collapsing run is stopped with the reason, a cut run goes on to the same model; what health means."""

import json
from dataclasses import replace

import pytest
import torch
from simulated.worlds import TINY_COLLECT, tiny_dataset, tiny_train

from forerun.core.errors import CheckpointError, CollapseError, TrajectoryError
from forerun.worldmodels.collection import record_episodes
from forerun.worldmodels.jepa.checkpoint import load_model
from forerun.worldmodels.jepa.health import Health, HealthMonitor, effective_rank, gaussianity
from forerun.worldmodels.jepa.probes import LinearProbe, MlpProbe, r_squared
from forerun.worldmodels.jepa.train import WindowBatches, fresh_model, train_world

HEALTHY = Health(
    embedding_std=1.0, effective_rank=6.0, gaussianity=1.2, prediction_over_copying=0.1, action_sensitivity=0.9,
    straightness=0.1, probe_r2={"x": 0.9, "y": 0.8},
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset():
    return tiny_dataset()


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_without_regulariser_the_run_is_stopped_and_says_why(dataset, tmp_path):
    config = tiny_train(num_steps=400)
    config = replace(config, objective=replace(config.objective, weight=0.0))
    with pytest.raises(CollapseError, match=r"shrink to a point: their standard deviation .* --lambda than 0"):
        train_world(dataset, tmp_path / "run", config)
    steps = len((tmp_path / "run" / "health.json").read_text().split('"step"')) - 1
    assert steps < 10  # of 41 looks
    control = replace(config, num_steps=30)
    result = train_world(dataset, tmp_path / "control", control, stops_on_collapse=False)
    assert "shrink to a point" in result["why_collapsed"]


def test_with_it_the_run_ends_healthy_and_is_not_made_twice(dataset, tmp_path):
    config = tiny_train(num_steps=120)
    config = replace(config, objective=replace(config.objective, weight=0.2))
    seen = []
    result = train_world(dataset, tmp_path, config, report=lambda done, total, detail: seen.append(detail))
    assert result["why_collapsed"] is None
    assert result["health"]["embedding_std"] > 0.5
    assert len(seen) == 120
    assert "rank" in seen[-1]
    assert load_model(tmp_path / "model")[1]["health"] == result["health"]
    assert train_world(dataset, tmp_path, config, report=lambda *_: pytest.fail("trained again")) == result


@pytest.mark.parametrize("regularizer", ["sigreg", "ema"])
def test_a_killed_run_goes_on_to_the_same_model(dataset, tmp_path, regularizer):
    config = tiny_train(num_steps=9, monitor_every=2, checkpoint_every=3)
    config = replace(config, objective=replace(config.objective, regularizer=regularizer))
    train_world(dataset, tmp_path / "whole", config, stops_on_collapse=False)

    def killed(done, total, detail):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_world(dataset, tmp_path / "cut", config, stops_on_collapse=False, report=killed)
    train_world(dataset, tmp_path / "cut", config, stops_on_collapse=False)
    whole, cut = (load_model(tmp_path / name / "model")[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert (tmp_path / "whole" / "health.json").read_text() == (tmp_path / "cut" / "health.json").read_text()


def test_a_folder_of_another_run_and_frames_of_another_size_are_refused(dataset, tmp_path):
    config = tiny_train(num_steps=2)
    train_world(dataset, tmp_path, config, stops_on_collapse=False)
    with pytest.raises(CheckpointError, match="other settings or data"):
        train_world(dataset, tmp_path, replace(config, seed=1))
    record = json.loads((tmp_path / "run.json").read_text())
    del record["config"]["objective"]["sigreg"]["num_subspaces"]  # as a run that is older than the option
    (tmp_path / "run.json").write_text(json.dumps(record))
    train_world(dataset, tmp_path, config, stops_on_collapse=False)
    (tmp_path / "run.json").write_text(json.dumps(record))
    sigreg = replace(config.objective.sigreg, num_subspaces=2)
    with pytest.raises(CheckpointError, match="other settings or data"):
        train_world(dataset, tmp_path, replace(config, objective=replace(config.objective, sigreg=sigreg)))
    large = record_episodes(replace(TINY_COLLECT, resolution=24), range(4))
    with pytest.raises(TrajectoryError, match="24 x 24 pixels: this model takes 16 x 16"):
        fresh_model(large, config)
    with pytest.raises(TrajectoryError, match="a window needs 4"):
        train_world(
            replace(dataset, episodes=record_episodes(replace(TINY_COLLECT, env_steps=10), range(4))),
            tmp_path / "short", config,
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_to_nearly_the_same_model(dataset, tmp_path):
    config = tiny_train(num_steps=5)
    for device in ("cpu", "cuda"):
        train_world(dataset, tmp_path / device, config, stops_on_collapse=False, device=device)
    first, second = (load_model(tmp_path / device / "model")[0].state_dict() for device in ("cpu", "cuda"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0.05, atol=0.02)


def test_frames_and_actions_go_where_the_model_is(dataset):
    """No GPU here: whether everything is moved shows in what is asked for."""
    batches = WindowBatches(dataset.episodes, history=3, batch_size=2, seed=0, device="meta")
    assert batches.at(0).pixels.device.type == batches.at(0).actions.device.type == "meta"
    model = fresh_model(dataset.episodes, tiny_train()).to("meta")
    assert model.device.type == "meta"
    assert model.encode_all(torch.zeros(2, 16, 16, 3, dtype=torch.uint8)).device.type == "meta"


def test_looking_changes_nothing(dataset):
    training, held_out = dataset.episodes.split(0.25, seed=0)
    model = fresh_model(training, tiny_train())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monitor = HealthMonitor(training, held_out, history=3)
    assert monitor.look(model) == monitor.look(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_verdicts():
    assert HEALTHY.collapse() is None
    point = replace(HEALTHY, embedding_std=0.01)
    assert "to a point" in point.collapse()
    assert "to a line" in replace(HEALTHY, effective_rank=1.1).collapse()
    assert replace(HEALTHY, embedding_std=float("nan")).collapse() is not None
    assert point.is_rising(replace(point, embedding_std=0.005))
    assert not point.is_rising(replace(point, embedding_std=0.02))
    assert HEALTHY.mean_probe_r2 == pytest.approx(0.85)
    assert "probe R² 0.850" in HEALTHY.line()


def test_effective_rank_counts_directions_in_use():
    basis = torch.linalg.qr(normal(8, 8))[0]
    for rank in (1, 3, 8):
        assert effective_rank(normal(20_000, rank) @ basis[:rank]) == pytest.approx(rank, rel=0.01)
    assert effective_rank(torch.diag(torch.tensor([1.0, 0, 0, 0])) @ torch.ones(4, 4)) == pytest.approx(1)


@pytest.mark.statistical
def test_gaussianity_is_one_for_a_gaussian_and_far_above_for_what_is_none():
    # Mean over 80 batches and 128 directions; its standard deviation over seeds is below 0.02: 10 of them.
    assert gaussianity(normal(128 * 80, 6)) == pytest.approx(1, abs=0.2)
    assert gaussianity(0.1 * normal(128 * 4, 6)) > 10


def test_a_linear_probe_reads_what_is_linear_and_nothing_else():
    latents = normal(400, 5)
    linear = latents @ normal(5, 2) + 3
    probe = LinearProbe.fit(latents[:200], linear[:200])
    assert (r_squared(probe(latents[200:]), linear[200:]) > 0.999).all()
    squares = latents[:, :1].square()
    probe = LinearProbe.fit(latents[:200], squares[:200])
    assert float(r_squared(probe(latents[200:]), squares[200:])) < 0.3
    network = MlpProbe.fit(latents[:200], squares[:200], num_steps=150)
    assert float(r_squared(network(latents[200:]), squares[200:])) > 0.7
    assert r_squared(torch.zeros(4, 1), torch.ones(4, 1)).tolist() == [0.0]
