"""A world model over the patch tokens of a frozen encoder: as many tokens of a frame as DINO-WM, to compare with.

A frame is 14 x 14 tokens. A transformer sees those of three frames, with the block of actions after each, and predicts
the tokens of the next. The encoder is a vision transformer with random weights: those of DINOv2 are not at hand here,
and what is compared is the price of planning over tokens, not the worth of features.

Shape letters: B sequences, T steps, P patches of a frame, C width of a token, A numbers of a block of actions.

Reference:
    Zhou et al. 2024 (arXiv 2411.04983), DINO-WM: frozen DINOv2 patch features, causal from frame to frame.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from forerun.core.control import ActionBounds, History
from forerun.core.generator import keyed_generator
from forerun.data.normalizer import Normalizer
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.models.vit import Vit, VitConfig
from forerun.nn.first_weights import seeded_weights
from forerun.nn.self_attention import feed_forward
from forerun.training.loop import LoopConfig, TrainingLoop
from forerun.worldmodels.jepa.encoder import normalised

GRID: Final = 14
NUM_PATCHES: Final = GRID * GRID
_PATCH_PIXELS: Final = 4
_FRAMES_AT_ONCE: Final = 256
_ROWS_AT_ONCE: Final = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenWorldConfig:
    """Shape and training; what is no number of tokens is as in the ``smoke`` configuration of the JEPA.

    Attributes:
        width: C.
        num_encoder_layers: Of the frozen transformer.
        num_blocks: Of the predictor.
        num_heads: Heads of both.
        mlp_width: Hidden width of their feed-forward layers.
        history: Frames that the predictor sees.
        num_steps: Optimiser steps.
        batch_size: Windows of a step.
        learning_rate: Peak.
        seed: Root of all chance.
    """

    width: int = 64
    num_encoder_layers: int = 2
    num_blocks: int = 2
    num_heads: int = 4
    mlp_width: int = 128
    history: int = 3
    num_steps: int = 300
    batch_size: int = 16
    learning_rate: float = 1e-3
    seed: int = 0


class TokenPredictor(nn.Module):
    """Predicts the tokens of the next frame from those of some frames and the blocks of actions after them.

    Args:
        config: Shape.
        action_dim: A.
    """

    def __init__(self, config: TokenWorldConfig, action_dim: int) -> None:
        super().__init__()
        self.history = config.history
        self.positions = nn.Parameter(0.02 * torch.randn(1, config.history, NUM_PATCHES, config.width))
        self.action_embedder = nn.Linear(action_dim, config.width)
        self.to_tokens = nn.Linear(2 * config.width, config.width)
        self.blocks = nn.ModuleList(_TokenBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.width)
        self.to_next = nn.Linear(config.width, config.width)
        nn.init.zeros_(self.to_next.weight)  # a fresh predictor says that nothing changes
        nn.init.zeros_(self.to_next.bias)

    def forward(
        self, tokens_BTPC: Float[Tensor, "B T P C"], actions_BTA: Float[Tensor, "B T A"]
    ) -> Float[Tensor, "B T P C"]:
        """Return the tokens that follow each frame, from that frame and those before it."""
        num_steps = tokens_BTPC.shape[1]
        embedded = self.action_embedder(actions_BTA)[:, :, None].expand_as(tokens_BTPC)
        mixed = self.to_tokens(torch.cat([tokens_BTPC, embedded], dim=-1)) + self.positions[:, :num_steps]
        hidden, mask = mixed.flatten(1, 2), _frame_causal_mask(num_steps)
        for block in self.blocks:
            hidden = block(hidden, mask)
        return tokens_BTPC + self.to_next(self.norm(hidden)).unflatten(1, (num_steps, NUM_PATCHES))


class TokenWorld(nn.Module):
    """Frozen tokens and their predictor; a :class:`~forerun.worldmodels.latent_model.LatentModel`.

    Args:
        config: Shape.
        action_dim: A.
        action_normalizer: Of blocks of actions.
    """

    def __init__(self, config: TokenWorldConfig, *, action_dim: int, action_normalizer: Normalizer) -> None:
        super().__init__()
        self.config, self.action_dim, self.action_normalizer = config, action_dim, action_normalizer
        self.encoder = Vit(
            VitConfig(
                image_size=GRID * _PATCH_PIXELS,
                patch_size=_PATCH_PIXELS,
                width=config.width,
                num_layers=config.num_encoder_layers,
                num_heads=config.num_heads,
                mlp_width=config.mlp_width,
            )
        ).requires_grad_(False)
        self.predictor = TokenPredictor(config, action_dim)

    @torch.no_grad()
    def encode_all(self, pixels: UInt8[Tensor, "frames height width 3"]) -> Float[Tensor, "frames D"]:
        """Return the tokens of many frames, those of a frame in one row: D is P x C."""
        size = GRID * _PATCH_PIXELS
        parts = [
            self.encoder.patch_states(interpolate(normalised(part), (size, size), mode="bilinear")).flatten(1)
            for part in pixels.split(_FRAMES_AT_ONCE)
        ]
        return torch.cat(parts)

    def action_bounds(self, limit: float) -> ActionBounds:
        """As :meth:`forerun.worldmodels.latent_model.LatentModel.action_bounds`."""
        box = torch.full((self.action_dim,), limit)
        return ActionBounds(low=self.action_normalizer(-box), high=self.action_normalizer(box))

    @torch.no_grad()
    def rollout(
        self,
        history: History,
        actions: Float[Tensor, "envs samples horizon A"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "envs samples horizon D"]:
        """As :meth:`forerun.core.protocols.Dynamics.rollout`; some candidates at a time, every window whole."""
        num_envs, num_samples = actions.shape[:2]
        states = history.states[:, -self.predictor.history :].repeat_interleave(num_samples, dim=0)
        taken = history.actions.repeat_interleave(num_samples, dim=0)
        taken = taken[:, taken.shape[1] - states.shape[1] + 1 :]
        blocks = torch.cat([taken, actions.flatten(0, 1)], dim=1)
        parts = [
            self._followed(*part) for part in zip(states.split(_ROWS_AT_ONCE), blocks.split(_ROWS_AT_ONCE), strict=True)
        ]
        return torch.cat(parts).unflatten(0, (num_envs, num_samples))

    def _followed(self, states: Tensor, blocks: Tensor) -> Tensor:
        num_seen = states.shape[1]
        tokens = states.unflatten(2, (NUM_PATCHES, -1))
        for stop in range(num_seen, blocks.shape[1] + 1):
            start = max(0, stop - self.predictor.history)
            following = self.predictor(tokens[:, start:stop], blocks[:, start:stop])[:, -1:]
            tokens = torch.cat([tokens, following], dim=1)
        return tokens[:, num_seen:].flatten(2)


def train_token_world(episodes: PixelEpisodes, config: TokenWorldConfig) -> TokenWorld:
    """Return a world model whose predictor has learned from some episodes; the encoder stays as it is.

    Args:
        episodes: To learn from, each longer than the history.
        config: Shape and training.

    Raises:
        TrajectoryError: Every episode is too short.
        DivergenceError: The loss is not a number.
    """
    normalizer = Normalizer.of_mean_and_std(torch.from_numpy(np.float32(episodes.taken_actions)))
    with seeded_weights(config.seed, "token world"):
        world = TokenWorld(config, action_dim=episodes.action_dim, action_normalizer=normalizer)
    tokens = world.encode_all(torch.from_numpy(episodes.pixels)).unflatten(1, (NUM_PATCHES, -1))
    blocks = normalizer(torch.from_numpy(np.float32(episodes.actions)))
    starts = torch.from_numpy(episodes.window_rows(config.history + 1))

    def windows_at(step: int) -> Tensor:
        generator = keyed_generator(config.seed, "token windows", step)
        picks = starts[torch.randint(len(starts), (config.batch_size,), generator=generator)]
        return picks[:, None] + torch.arange(config.history + 1)

    def loss(rows: Tensor) -> Tensor:
        window = tokens[rows]
        return (world.predictor(window[:, :-1], blocks[rows[:, :-1]]) - window[:, 1:]).square().mean()

    loop = LoopConfig(num_steps=config.num_steps, learning_rate=config.learning_rate, weight_decay=1e-3)
    TrainingLoop(world.predictor.train(), loop, batch_at=windows_at, loss=loss).run()
    return world.eval()


class _TokenBlock(nn.Module):
    def __init__(self, config: TokenWorldConfig) -> None:
        super().__init__()
        self._num_heads = config.num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.to_qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.to_out = nn.Linear(config.width, config.width)
        self.mlp = feed_forward(config.width, config.mlp_width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        parts = self.to_qkv(self.attention_norm(tokens)).chunk(3, -1)
        queries, keys, values = (part.unflatten(-1, (self._num_heads, -1)).transpose(1, 2) for part in parts)
        mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        tokens = tokens + self.to_out(mixed.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.mlp_norm(tokens))


def _frame_causal_mask(num_steps: int) -> Bool[Tensor, "tokens tokens"]:
    """Return which tokens each token sees: all of its own frame and of those before it."""
    frame = torch.arange(num_steps).repeat_interleave(NUM_PATCHES)
    return frame[:, None] >= frame[None, :]
