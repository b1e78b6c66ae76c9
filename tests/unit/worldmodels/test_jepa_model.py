"""The world model: its roll-out with kept keys and values, causality, the loss as published, its file."""

import json
from dataclasses import replace

import pytest
import torch
from simulated.worlds import TINY_MODEL

from forerun.core.control import History
from forerun.core.errors import CheckpointError, ConfigError
from forerun.models.vit import VitConfig
from forerun.nn.first_weights import seeded_weights
from forerun.worldmodels.jepa.checkpoint import load_model, save_model
from forerun.worldmodels.jepa.config import TRAIN_CONFIGS, JepaConfig, ObjectiveConfig
from forerun.worldmodels.jepa.encoder import CnnConfig, KeypointConfig, Keypoints, normalised
from forerun.worldmodels.jepa.model import Jepa
from forerun.worldmodels.jepa.objective import JepaObjective, WindowBatch, vicreg
from forerun.worldmodels.jepa.predictor import AdaLnBlock

ACTION_DIM = 4


@pytest.fixture
def model():
    """A model whose gates are open: fresh ones are 0, which would hide most of it."""
    with seeded_weights(0, "test"):
        model = Jepa(TINY_MODEL, action_dim=ACTION_DIM)
        for parameter in model.predictor.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def windows(seed=0):
    pixels = torch.randint(0, 256, (6, 4, 16, 16, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return WindowBatch(pixels=pixels, actions=normal(6, 3, ACTION_DIM), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("context", [1, 2, 3, 5])
def test_rollout_is_that_of_whole_windows(model, context, monkeypatch):
    monkeypatch.setattr("forerun.worldmodels.jepa.model._ROWS_AT_ONCE", 4)  # of 6
    model = model.double()
    history = History(states=normal(2, context, 8).double(), actions=normal(2, context - 1, ACTION_DIM).double())
    actions = normal(2, 3, 6, ACTION_DIM, seed=1).double()
    fast = model.rollout(history, actions, generator=torch.Generator())
    torch.testing.assert_close(fast, model.uncached_rollout(history, actions), rtol=1e-10, atol=1e-12)
    assert fast.std() > 0.05


def test_prediction_sees_nothing_of_later_steps(model):
    latents, actions = normal(2, 3, 8), normal(2, 3, ACTION_DIM)
    before = model.predict(latents, actions)
    changed = model.predict(latents + torch.tensor([0, 0, 1.0])[:, None], actions + torch.tensor([0, 1.0, 1])[:, None])
    torch.testing.assert_close(changed[:, 0], before[:, 0])
    assert not torch.allclose(changed[:, 1], before[:, 1])


def test_a_fresh_block_is_the_identity():
    block = AdaLnBlock(TINY_MODEL.predictor, 5)
    tokens = normal(2, 3, 16)
    assert torch.equal(block(tokens, normal(2, 3, 5)), tokens)


@pytest.mark.parametrize(("regularizer", "flows"), [("sigreg", True), ("ema", False)])
def test_gradient_flows_into_the_target_as_published(model, monkeypatch, regularizer, flows):
    latents = normal(6, 4, 8).requires_grad_()
    monkeypatch.setattr(Jepa, "encode", lambda self, pixels: 1.0 * latents)
    terms = JepaObjective(model, ObjectiveConfig(regularizer=regularizer, weight=0.0)).loss(windows())
    terms.total.backward()
    assert bool((latents.grad[:, -1] != 0).any()) == flows  # the last frame of a window is only ever a target
    assert bool((latents.grad[:, 0] != 0).any())


def test_loss_is_the_mean_squared_error_plus_lambda_sigreg(model):
    batch = windows()
    plain, weighted = (
        JepaObjective(model, ObjectiveConfig(weight=weight)).loss(
            WindowBatch(pixels=batch.pixels, actions=batch.actions, generator=torch.Generator().manual_seed(5))
        )
        for weight in (0.0, 0.3)
    )
    latents = model.encode(batch.pixels)
    predicted = model.predict(latents[:, :-1], model.standardised(batch.actions))
    wanted = (predicted - latents[:, 1:]).square().sum() / (6 * 3 * 8)
    assert float(plain.total) == pytest.approx(float(wanted), rel=1e-5)
    assert float(weighted.total) == pytest.approx(float(wanted) + 0.3 * float(weighted.regularizer), rel=1e-5)
    assert float(weighted.regularizer) > 0


def test_the_averaged_target_follows_slowly(model):
    objective = JepaObjective(model, ObjectiveConfig(regularizer="ema", ema_decay=0.75))
    before = objective.target.projector[0].weight.clone()
    with torch.no_grad():
        model.projector[0].weight.add_(1.0)
    objective.after_step()
    torch.testing.assert_close(objective.target.projector[0].weight, before + 0.25)


def test_vicreg_is_zero_for_spread_and_uncorrelated_dimensions_only():
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])[None] * 2
    assert float(vicreg(signs)) == pytest.approx(0.0, abs=1e-6)
    assert float(vicreg(signs * 0.1)) > 0.5
    assert float(vicreg(signs[..., :1].expand(1, 4, 2))) > 1


def test_a_missing_action_is_the_mean_one(model):
    raw = torch.tensor([[1.0, float("nan"), 2, 3]])
    assert model.standardised(raw)[0, 1] == 0
    assert model.standardised(raw).isfinite().all()


def test_the_published_configuration_has_its_published_size():
    model = Jepa(TRAIN_CONFIGS["paper"].model, action_dim=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(18_042_672, rel=1e-3)


def test_a_vision_transformer_encodes_too():
    config = JepaConfig(
        encoder=VitConfig(image_size=16, patch_size=8, width=16, num_layers=2, num_heads=2, mlp_width=32),
        predictor=TINY_MODEL.predictor, latent_dim=8, projector_width=16,
    )  # fmt: skip
    model = Jepa(config, action_dim=ACTION_DIM).eval()
    latents = model.encode(windows().pixels)
    assert latents.shape == (6, 4, 8)
    torch.testing.assert_close(model.encode(windows().pixels[:1]), latents[:1])
    assert JepaConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_keypoints_move_with_what_they_see():
    """By whole cells of 4 pixels, away from the border: each place then moves by equal steps along one axis alone."""
    with seeded_weights(0, "test"):
        encoder = Keypoints(KeypointConfig(image_size=64, num_channels=4, num_keypoints=6)).eval().double()
    encoder.head = torch.nn.Identity()
    frames = torch.zeros(6, 64, 64, 3, dtype=torch.uint8)
    for step, frame in enumerate(frames):
        frame[30:34, 20 + 4 * step : 24 + 4 * step] = 255
    with torch.no_grad():
        across, down = encoder(normalised(frames).double()).split(6, dim=1)
    steps = across.diff(dim=0)
    assert (steps.abs() > 1e-6).all()
    torch.testing.assert_close(steps, steps[:1].expand(5, -1), rtol=0.05, atol=0)
    assert float(down.diff(dim=0).abs().max()) < 0.05 * float(steps.abs().min())


def test_keypoints_are_an_encoder_like_others(tmp_path):
    config = replace(TINY_MODEL, encoder=KeypointConfig(image_size=16, num_channels=2, num_keypoints=3, width=8))
    assert JepaConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with seeded_weights(0, "test"):
        model = Jepa(config, action_dim=ACTION_DIM)
    assert model.encode(windows().pixels).shape == (6, 4, 8)
    for size in (6, 18):
        with pytest.raises(ConfigError, match=f"image_size={size}"):
            KeypointConfig(image_size=size)
    with pytest.raises(ConfigError, match="num_keypoints=0"):
        KeypointConfig(num_keypoints=0)


def test_a_model_comes_back_from_its_file(model, tmp_path):
    save_model(model, tmp_path / "model", record={"task": "two-room"})
    again, manifest = load_model(tmp_path / "model")
    assert manifest["task"] == "two-room"
    assert torch.equal(again.encode(windows().pixels), model.encode(windows().pixels))


def test_damaged_files_are_refused(model, tmp_path):
    folder = tmp_path / "model"
    save_model(model, folder, record={})
    manifest = json.loads((folder / "manifest.json").read_text())
    for damage in (
        {"model": manifest["model"] | {"latent_dim": 9}},
        {"model": manifest["model"] | {"latent": 8}},
        {"format": "other"},
    ):
        (folder / "manifest.json").write_text(json.dumps(manifest | damage))
        with pytest.raises(CheckpointError, match="model"):
            load_model(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="holds no readable world model"):
        load_model(folder)


def test_refusals_of_shapes():
    with pytest.raises(ConfigError, match="patch_size=5"):
        VitConfig(image_size=16, patch_size=5)
    with pytest.raises(ConfigError, match="image_size=20"):
        CnnConfig(image_size=20)
    with pytest.raises(ConfigError, match="lambda=-1"):
        ObjectiveConfig(weight=-1)
