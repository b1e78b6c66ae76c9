"""How many plans one core makes in a second: ways in turn, on the same situations, in one process."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from forerun.core.control import History
from forerun.core.generator import keyed_generator
from forerun.data.trajectories import Trajectories
from forerun.recipes.mpc.contenders import Contender, Setting


def measure_rate(
    setting: Setting, data: Trajectories, ways: Mapping[str, Contender], *, num_plans: int = 40
) -> dict[str, Any]:
    """Plan for single environments, every way once for each situation, so that the machine's moods hit all alike.

    Args:
        setting: Task and models.
        data: Situations are drawn from its states.
        ways: By name; those that plan.
        num_plans: Of each.

    Returns:
        For each way the median CPU milliseconds of a plan, and plans per CPU second, as JSON types.
    """
    planners = {name: way.controller(setting).planner for name, way in ways.items()}
    generator = keyed_generator(0, "rate")
    states = torch.from_numpy(np.concatenate([episode.states[:-1] for episode in data.episodes]))
    chosen = states[torch.randint(len(states), (num_plans + 1,), generator=generator)]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    warm_start = setting.bundle.bounds.middle.expand(1, setting.bundle.config.horizon, -1)
    for state in chosen:
        history = History.of_present(state[None], action_dim=setting.task.action_dim)
        for way, planner in planners.items():
            began = time.process_time()
            planner.plan(history, generator=generator, warm_start=warm_start)
            seconds[way].append(time.process_time() - began)
    # The first plan of each builds what is built once.
    medians = {way: float(np.median(found[1:])) for way, found in seconds.items()}
    return {way: {"cpu_ms": 1e3 * median, "per_cpu_s": 1 / median} for way, median in medians.items()}
