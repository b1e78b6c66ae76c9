"""Goal-conditioned behaviour cloning: what it learns, what it writes, what it refuses."""

import json

import numpy as np
import pytest
import torch
from simulated.worlds import tiny_dataset

from forerun.core.errors import CheckpointError, ConfigError, TrajectoryError
from forerun.recipes.world.agents import CloningAgent
from forerun.recipes.world.goal_tasks import held_out_tasks
from forerun.worldmodels.cloning import CloningConfig, clone_policy, load_policy
from forerun.worldmodels.jepa.encoder import CnnConfig, KeypointConfig, Keypoints

TINY = CloningConfig(
    encoder=CnnConfig(image_size=16, num_channels=4, width=16), hidden_width=32, num_steps=120, batch_size=32
)


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cloned") / "policy"
    return folder, clone_policy(tiny_dataset(), folder, TINY)


def test_cloning_learns_more_than_the_mean_action(cloned):
    folder, result = cloned
    assert result["final_loss"] < 0.95  # the mean action has 1
    assert result["num_params"] == sum(parameter.numel() for parameter in load_policy(folder).parameters())


def test_a_loaded_policy_acts_towards_the_goal_it_is_given(cloned):
    episodes = tiny_dataset().episodes
    policy = load_policy(cloned[0])
    frames = torch.from_numpy(episodes.pixels[:6])
    goals = torch.from_numpy(episodes.pixels[-6:])
    assert policy.act(frames, goals).shape == (6, 10)
    assert not torch.allclose(policy.act(frames, goals), policy.act(frames, frames))
    tasks = held_out_tasks(episodes, "near", num_tasks=4, frame_skip=5, seed=0)
    blocks = CloningAgent(policy, tasks).act(tasks.worlds(), tasks.goal_pixels[[0, 3]], np.array([0, 3]))
    assert blocks.shape == (2, 10)


def test_a_policy_has_the_encoder_it_was_cloned_with(cloned, tmp_path):
    encoder = KeypointConfig(image_size=16, num_channels=2, num_keypoints=3, width=8)
    config = CloningConfig(encoder=encoder, hidden_width=8, num_steps=2, batch_size=8)
    clone_policy(tiny_dataset(), tmp_path / "policy", config)
    assert isinstance(load_policy(tmp_path / "policy").encoder, Keypoints)
    path = cloned[0] / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["config"]["encoder"].pop("kind") == "cnn"
    before = load_policy(cloned[0]).config
    path.write_text(json.dumps(manifest))  # as policies were written before there was a choice
    assert load_policy(cloned[0]).config == before


def test_refusals(cloned, tmp_path):
    with pytest.raises(ConfigError, match="most_blocks_ahead=0"):
        CloningConfig(most_blocks_ahead=0)
    with pytest.raises(TrajectoryError, match="takes 32 x 32"):
        clone_policy(tiny_dataset(), tmp_path / "policy", CloningConfig())
    with pytest.raises(CheckpointError, match="world clone"):
        load_policy(tmp_path)
    manifest = (cloned[0] / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(manifest.replace("forerun-cloning", "other"))
    with pytest.raises(CheckpointError, match="no cloned policy"):
        load_policy(tmp_path)
