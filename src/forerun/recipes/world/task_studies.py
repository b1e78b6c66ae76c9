"""Studies of Push-T and of stable-worldmodel's Two-Room, by task; their scale is that of a CPU."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from forerun.recipes.world.planners import PlanConfig
from forerun.recipes.world.task_study import TaskStudy
from forerun.worldmodels.cloning import CloningConfig
from forerun.worldmodels.collection import CollectConfig
from forerun.worldmodels.jepa.config import TRAIN_CONFIGS
from forerun.worldmodels.jepa.encoder import KeypointConfig

_REPLANNED: Final = PlanConfig(
    num_samples=64, num_elites=8, num_iterations=3, execute_horizon=1, num_context=3, cost_at="every",
    is_bounded=True, has_warm_start=True,
)  # fmt: skip
_PUSH_T: Final = TaskStudy(
    collect=CollectConfig(task="push-t", num_episodes=1200, resolution=64, expert_share=0.3, random_share=0.2),
    train=replace(TRAIN_CONFIGS["keypoints"], num_steps=1000),
    control_steps=100,
    clone=CloningConfig(encoder=KeypointConfig(image_size=64), num_steps=400, batch_size=64),
    ways={
        "": PlanConfig(num_samples=64, num_elites=8, num_iterations=4),
        "replanned": _REPLANNED,
        "replanned, with proposals": replace(_REPLANNED, num_proposals=32),
    },
    least_success={},
    least_r2=dict.fromkeys(("agent_x", "agent_y", "block_x", "block_y"), 0.9),
)
_STABLE_TWO_ROOM: Final = TaskStudy(
    collect=CollectConfig(task="stable-two-room", num_episodes=1000),
    train=TRAIN_CONFIGS["smoke"],
    control_steps=250,
    ways={
        "": PlanConfig(num_samples=300, num_elites=30, num_iterations=10),
        "replanned": PlanConfig(num_samples=300, num_elites=30, num_iterations=10, execute_horizon=2),
    },
    is_scored_elsewhere=True,
    least_success={"near": 0.95},
    least_r2={},
)

STUDIES: Final[Mapping[str, TaskStudy]] = {"push-t": _PUSH_T, "stable-two-room": _STABLE_TWO_ROOM}
