"""Plans per CPU second of our cross-entropy method and of stable-worldmodel's, on the same weights and settings.

    pip install 'forerun[stable-worlds]'
    python benchmarks/bench_planner.py --out benchmarks/results/planner.json

Theirs is the published pair: its ``CEMSolver`` on its ``LeWM`` module, which gets our weights. Ours is ``Cem`` on
``Jepa``, with fused kernels and, for comparison, module by module. All plan for the same environments, alternate in one
process after one round that does not count, and run on one thread; CPU seconds of the process, ratios of neighbours.
Costs of the same candidates are compared too, and whole plans from the same random numbers. Beside the times stand the
multiply-adds of both: what a faster implementation of the same arithmetic could at most save.
"""

import argparse
import contextlib
import io
import statistics
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from forerun.core.atomic_files import write_json_file
from forerun.core.control import History
from forerun.core.env import cpu_info, package_versions
from forerun.envs.stable_worlds import import_stable_worldmodel
from forerun.planning.cem import Cem, CemConfig
from forerun.planning.objective import GoalDistance
from forerun.worldmodels.jepa.config import TRAIN_CONFIGS, JepaConfig
from forerun.worldmodels.jepa.encoder import CnnConfig, normalised
from forerun.worldmodels.jepa.model import Jepa
from forerun.worldmodels.jepa.predictor import PredictorConfig

ACTION_DIM, BLOCK = 10, 5
WANTED_RATIO = 5.0
SMALL = TRAIN_CONFIGS["small"].model
SHAPES = {
    "smoke": (replace(TRAIN_CONFIGS["smoke"].model, latent_dim=64), 8, 10),
    "small": (replace(SMALL, latent_dim=SMALL.predictor.width), 4, 10),
    "paper's predictor": (JepaConfig(encoder=CnnConfig(), predictor=PredictorConfig()), 1, 2),
}
"""Model, environments, iterations. Embeddings as wide as tokens: their module has no other way to say it."""


class FrameEncoder(nn.Module):
    """Our encoder with the interface that theirs expects of a transformer."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor, interpolate_pos_encoding: bool) -> SimpleNamespace:
        """Return the vector of each image as its only token."""
        return SimpleNamespace(last_hidden_state=self.encoder(pixels)[:, None])


def our_model(config: JepaConfig) -> Jepa:
    """Return a model with weights that let actions matter, as a fresh one's gates are closed."""
    torch.manual_seed(0)
    model = Jepa(config, action_dim=ACTION_DIM)
    for block in model.predictor.blocks:
        nn.init.normal_(block.to_modulation[1].weight, std=0.2)
    model.encode(torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8))
    model.predict(torch.randn(64, 3, config.latent_dim), torch.randn(64, 3, ACTION_DIM))
    return model.eval()


def their_model(ours: Jepa) -> nn.Module:
    """Return their module with our weights."""
    module = import_module("stable_worldmodel.wm.lewm.module")
    lewm = import_module("stable_worldmodel.wm.lewm")
    config, predictor = ours.config, ours.config.predictor
    width = config.latent_dim
    theirs = lewm.LeWM(
        encoder=FrameEncoder(ours.encoder),
        predictor=module.Predictor(
            num_frames=predictor.history,
            depth=predictor.num_blocks,
            heads=predictor.num_heads,
            dim_head=predictor.head_dim,
            mlp_dim=predictor.mlp_width,
            input_dim=width,
            hidden_dim=width,
        ),
        action_encoder=module.Embedder(input_dim=ACTION_DIM, smoothed_dim=config.action_width, emb_dim=width),
        projector=module.MLP(ours.encoder.width, config.projector_width, width, norm_fn=nn.BatchNorm1d),
        pred_proj=module.MLP(width, config.projector_width, width, norm_fn=nn.BatchNorm1d),
    )
    theirs.predictor.pos_embedding.data.copy_(ours.predictor.positions)
    embedder, ours_embedder = theirs.action_encoder, ours.action_embedder
    embedder.patch_embed.weight.data.copy_(ours_embedder[0].weight[..., None])
    embedder.patch_embed.bias.data.copy_(ours_embedder[0].bias)
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (embedder.embed[0], ours_embedder[1]),
        (embedder.embed[2], ours_embedder[3]),
        (theirs.projector.net, ours.projector),
        (theirs.pred_proj.net, ours.prediction_projector),
        (theirs.predictor.transformer.norm, ours.predictor.norm),
    ]
    for layer, block in zip(theirs.predictor.transformer.layers, ours.predictor.blocks, strict=True):
        pairs += [
            (layer.attn.norm, block.attention_norm),
            (layer.attn.to_qkv, block.attention.to_qkv),
            (layer.attn.to_out[0], block.attention.to_out[0]),
            (layer.mlp.net[0], block.mlp_norm),
            (layer.mlp.net[1], block.mlp[0]),
            (layer.mlp.net[4], block.mlp[3]),
            (layer.adaLN_modulation[-1], block.to_modulation[1]),
        ]
    for target, source in pairs:
        target.load_state_dict(source.state_dict())
    return theirs.eval().requires_grad_(False)


class Pair:
    """The two planners on one model, for the same starts and goals."""

    def __init__(self, config: JepaConfig, num_envs: int, num_iterations: int) -> None:
        import gymnasium

        policy, solver = import_module("stable_worldmodel.policy"), import_module("stable_worldmodel.solver")
        self.model = our_model(config)
        self.starts, self.goals = torch.randint(0, 256, (2, num_envs, 32, 32, 3), dtype=torch.uint8).unbind()
        self.config = CemConfig(
            horizon=5, num_samples=300, num_elites=30, num_iterations=num_iterations, returns="mean"
        )
        self.lewm: Any = their_model(self.model)
        self.solver = solver.CEMSolver(self.lewm, num_samples=300, topk=30, n_steps=num_iterations, seed=0)
        self.solver.configure(
            action_space=gymnasium.spaces.Box(-1, 1, (num_envs, ACTION_DIM // BLOCK)),
            n_envs=num_envs,
            config=policy.PlanConfig(horizon=5, receding_horizon=5, action_block=BLOCK),
        )

    def by_modules(self) -> Tensor:
        """Return our plans, computed by PyTorch's modules."""
        self.model.fuses_rollouts = False
        found = self.ours()
        self.model.fuses_rollouts = True
        return found

    def ours(self) -> Tensor:
        """Return our plans."""
        history = History.of_present(self.model.encode_all(self.starts), action_dim=ACTION_DIM)
        goals = self.model.encode_all(self.goals)
        planner = Cem(self.config, dynamics=self.model, objective=-GoalDistance(goals))
        return planner.plan(history, generator=torch.Generator().manual_seed(0)).actions

    def theirs(self) -> Tensor:
        """Return theirs."""
        self.solver.torch_gen.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()):
            return self.solver.solve(self.info())["actions"]

    def info(self) -> dict[str, Tensor]:
        """Return starts and goals as their planner takes them."""
        return {
            "pixels": normalised(self.starts)[:, None],
            "goal": normalised(self.goals)[:, None],
            "action": torch.zeros(len(self.starts), 1, ACTION_DIM),
        }

    @torch.no_grad()
    def largest_cost_difference(self) -> float:
        """Return the largest difference between costs of the same candidates, over the largest cost."""
        candidates = torch.randn(len(self.starts), 300, 5, ACTION_DIM)
        infos = [
            {key: value[env, None, None].expand(1, 300, *value.shape[1:]) for key, value in self.info().items()}
            for env in range(len(self.starts))
        ]  # its module takes one environment at a time
        theirs = torch.cat([self.lewm.get_cost(info, candidates[env, None]) for env, info in enumerate(infos)])
        history = History.of_present(self.model.encode_all(self.starts), action_dim=ACTION_DIM)
        states = self.model.rollout(history, candidates, generator=torch.Generator())
        ours = GoalDistance(self.model.encode_all(self.goals)).score(history, states, candidates)
        return float((ours - theirs).abs().max() / theirs.abs().max())


def multiply_adds(config: JepaConfig, *, horizon: int) -> dict[str, int]:
    """Return the multiply-adds of one candidate's roll-out from one frame, as theirs and as ours compute it.

    Theirs takes every token of every window through everything, and embeds all actions so far at every step. Ours
    computes what the cost depends on: a window that grows adds one token; one that slides is new in all its tokens, as
    positions count from its start, but of the last block the others are needed as keys and values alone; an action is
    embedded once and modulates a block once. Not counted: norms, attention between at most three tokens, and what is
    done element by element.
    """
    predictor, width, count = config.predictor, config.latent_dim, config.predictor.num_blocks
    inner = predictor.num_heads * predictor.head_dim
    key_value = 2 * width * inner
    token = 4 * width * inner + 2 * width * predictor.mlp_width
    modulation, head = 6 * width * width, 2 * width * config.projector_width
    windows = [min(step, predictor.history) for step in range(1, horizon + 1)]
    embedding = ACTION_DIM * config.action_width + 4 * width * (config.action_width + width)
    num_grown = min(horizon, predictor.history)
    slid = (count - 1) * predictor.history * token + (predictor.history - 1) * key_value + token
    return {
        "theirs": sum(windows) * (count * (token + modulation) + head) + sum(range(1, horizon + 1)) * embedding,
        "ours": num_grown * count * token
        + (horizon - num_grown) * slid
        + horizon * (count * modulation + head + 4 * width * (ACTION_DIM + width)),
    }


def measured(name: str, rounds: int) -> dict[str, Any]:
    config, num_envs, num_iterations = SHAPES[name]
    pair = Pair(config, num_envs, num_iterations)
    alone = Pair(config, 1, num_iterations)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "by_modules": []}
    for number in range(rounds + 1):
        for who in seconds:
            began = time.process_time()
            getattr(pair, who)()
            if number:
                seconds[who].append((time.process_time() - began) / num_envs)
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    counts = multiply_adds(config, horizon=pair.config.horizon)
    return {
        "num_params": sum(parameter.numel() for parameter in pair.model.parameters()),
        "num_envs": num_envs,
        "num_iterations": num_iterations,
        "median_cpu_s_per_plan": {who: statistics.median(values) for who, values in seconds.items()},
        "median_ratio": statistics.median(ratios),
        "wanted_ratio": WANTED_RATIO,
        "is_met": statistics.median(ratios) >= WANTED_RATIO,
        "ratios": ratios,
        "multiply_adds_per_candidate": counts,
        "multiply_adds_ratio": counts["theirs"] / counts["ours"],
        "billion_multiply_adds_per_cpu_s": {
            who: counts["theirs" if who == "theirs" else "ours"]
            * 300
            * num_iterations
            / 1e9
            / statistics.median(values)
            for who, values in seconds.items()
        },
        "largest_cost_difference": pair.largest_cost_difference(),
        "largest_plan_difference": float((alone.ours() - alone.theirs()).abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=list(SHAPES))
    args = parser.parse_args()
    import_stable_worldmodel()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "settings": "300 samples, 30 elites, 5 blocks, from one frame",
        "cpu": cpu_info().model_name,
        "versions": package_versions(("forerun", "torch", "stable-worldmodel")),
        "shapes": {},
    }
    for name in args.shapes:
        result["shapes"][name] = measured(name, args.rounds)
        sys.stdout.write(f"{name}: {result['shapes'][name]}\n")
    if args.out is not None:
        write_json_file(args.out, result)


if __name__ == "__main__":
    main()
