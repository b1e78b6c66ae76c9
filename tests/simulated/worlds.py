"""A few recorded episodes of Two-Room, and a world model small enough to train in a test."""

from dataclasses import replace

from forerun.data.pixel_shards import PixelDataset
from forerun.worldmodels.collection import TASK, CollectConfig, record_episodes
from forerun.worldmodels.jepa.config import TRAIN_CONFIGS, JepaConfig, JepaTrainConfig
from forerun.worldmodels.jepa.encoder import CnnConfig
from forerun.worldmodels.jepa.predictor import PredictorConfig

TINY_COLLECT = CollectConfig(num_episodes=24, env_steps=40, resolution=16, shard_episodes=10)
TINY_MODEL = JepaConfig(
    encoder=CnnConfig(image_size=16, num_channels=4, width=16),
    predictor=PredictorConfig(width=16, num_blocks=2, num_heads=2, head_dim=8, mlp_width=32, history=3, dropout=0.0),
    latent_dim=8,
    projector_width=16,
)


def tiny_dataset(digest: str = "tiny") -> PixelDataset:
    """Return two dozen short episodes."""
    return PixelDataset(
        episodes=record_episodes(TINY_COLLECT, range(TINY_COLLECT.num_episodes)),
        digest=digest,
        task=TASK,
        frame_skip=TINY_COLLECT.frame_skip,
        recipe={},
    )


def tiny_train(**changes) -> JepaTrainConfig:
    """Return a training of some dozens of steps."""
    base = replace(TRAIN_CONFIGS["smoke"], model=TINY_MODEL, num_steps=40, batch_size=16, monitor_every=10)
    return replace(base, **changes)
