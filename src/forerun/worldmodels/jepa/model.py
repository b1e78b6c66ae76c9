"""The world model: encoder, projectors, action embedder and predictor as one module.

Shape letters: B sequences, T steps, D latent dimension, A numbers of an action.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from forerun.core.control import ActionBounds, History
from forerun.data.normalizer import Normalizer
from forerun.nn.self_attention import KeyValues
from forerun.worldmodels.jepa.config import JepaConfig
from forerun.worldmodels.jepa.encoder import build_encoder, normalised
from forerun.worldmodels.jepa.fused_rollout import FusedRollout, can_fuse
from forerun.worldmodels.jepa.predictor import Predictor

_FRAMES_AT_ONCE = 512
_ROWS_AT_ONCE = 1024
"""Candidates rolled out at a time: what a layer of them takes stays near a core."""


class Jepa(nn.Module):
    """Encodes frames, and predicts the embedding after an action.

    Actions are in units of the training data: ``standardised`` takes raw ones there.

    Args:
        config: Shape.
        action_dim: A: numbers of an action, which is the whole block of raw actions between two frames.
        action_normalizer: From raw actions; ``None``: no shift, no scale.
    """

    def __init__(self, config: JepaConfig, *, action_dim: int, action_normalizer: Normalizer | None = None) -> None:
        super().__init__()
        self.config, self.action_dim = config, action_dim
        self.encoder = build_encoder(config.encoder)
        self.projector = _projector(self.encoder.width, config.projector_width, config.latent_dim)
        condition_width = config.predictor.width
        self.action_embedder = nn.Sequential(
            nn.Linear(action_dim, config.action_width),
            nn.Linear(config.action_width, 4 * condition_width),
            nn.SiLU(),
            nn.Linear(4 * condition_width, condition_width),
        )
        self.predictor = Predictor(config.predictor, latent_dim=config.latent_dim, condition_width=condition_width)
        self.prediction_projector = _projector(config.latent_dim, config.projector_width, config.latent_dim)
        self.action_normalizer = action_normalizer or Normalizer(torch.zeros(action_dim), torch.ones(action_dim))
        self.fuses_rollouts = True
        """Whether roll-outs go through :class:`~forerun.worldmodels.jepa.fused_rollout.FusedRollout` where they can."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.action_normalizer.shift.device

    def encode(self, pixels: UInt8[Tensor, "*batch height width 3"]) -> Float[Tensor, "*batch D"]:
        """Return the embedding of each frame; in training, batch norm is over all frames given."""
        frames = pixels.flatten(0, -4) if pixels.ndim > 4 else pixels
        latents = self.projector(self.encoder(normalised(frames)))
        return latents.unflatten(0, pixels.shape[:-3]) if pixels.ndim > 4 else latents

    @torch.no_grad()
    def encode_all(self, pixels: UInt8[Tensor, "frames height width 3"]) -> Float[Tensor, "frames D"]:
        """Return the embeddings of many frames, a few hundred at a time, in evaluation mode, without gradient.

        Frames may be on any device, embeddings are on the model's.
        """
        was_training = self.training
        self.eval()
        latents = torch.cat([self.encode(part.to(self.device)) for part in pixels.split(_FRAMES_AT_ONCE)])
        self.train(was_training)
        return latents

    def standardised(self, raw_actions: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        """Return raw actions in the model's units; a NaN, as where an episode ends, becomes the mean action (0)."""
        return self.action_normalizer(raw_actions).nan_to_num(nan=0.0)

    def action_bounds(self, limit: float) -> ActionBounds:
        """Return the box of raw actions in [-limit, limit], in the model's units."""
        box = torch.full((self.action_dim,), limit, device=self.device)
        return ActionBounds(low=self.action_normalizer(-box), high=self.action_normalizer(box))

    def predict(
        self, latents_BTD: Float[Tensor, "B T D"], actions_BTA: Float[Tensor, "B T A"]
    ) -> Float[Tensor, "B T D"]:
        """Return at each step the embedding that follows its action, from that step and those before it.

        Args:
            latents_BTD: At most ``history`` embeddings.
            actions_BTA: What is done after each, in the model's units.
        """
        predicted = self.predictor(latents_BTD, self.action_embedder(actions_BTA))
        return self.prediction_projector(predicted.flatten(0, 1)).unflatten(0, predicted.shape[:2])

    def rollout(
        self,
        history: History,
        actions: Float[Tensor, "envs samples horizon A"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "envs samples horizon D"]:
        """As :meth:`forerun.core.protocols.Dynamics.rollout`: states are embeddings, nothing is drawn.

        The window of the predictor grows to ``history`` steps, each computed once with its keys and values kept. From
        there it slides, and a window that slides is computed anew, as positions count from its start. Where a gradient
        is asked for, on a GPU and under autocast the modules compute; else fused kernels do, and get the same numbers
        but for rounding.
        """
        latents, past_actions = self._repeated(history, actions.shape[1])
        if self.fuses_rollouts and can_fuse(self.predictor):
            fused = FusedRollout(
                self.predictor, action_embedder=self.action_embedder, projector=self.prediction_projector
            )
            return fused.run(latents, past_actions, actions.flatten(0, 1)).unflatten(0, actions.shape[:2])
        was_training = self.training
        self.eval()
        parts = zip(
            *(rows.split(_ROWS_AT_ONCE) for rows in (latents, past_actions, actions.flatten(0, 1))), strict=True
        )
        states = torch.cat([self._rolled_out(*part) for part in parts])
        self.train(was_training)
        return states.unflatten(0, actions.shape[:2])

    def _rolled_out(self, latents_BTD: Tensor, past_actions_BTA: Tensor, actions_BTA: Tensor) -> Tensor:
        """Return the embeddings after each action of some candidates."""
        latents = list(latents_BTD.unbind(1))
        conditions = list(self.action_embedder(past_actions_BTA).unbind(1))
        past: list[KeyValues] = []
        for latent, condition in zip(latents[:-1], conditions, strict=True):
            _, past = self.predictor.extend(latent, condition, past)
        states: list[Tensor] = []
        for condition in self.action_embedder(actions_BTA).unbind(1):
            conditions.append(condition)
            if len(latents) <= self.predictor.history:
                predicted, past = self.predictor.extend(latents[-1], condition, past)
            else:
                latents, conditions = latents[1:], conditions[1:]
                predicted = self.predictor.last(torch.stack(latents, dim=1), torch.stack(conditions, dim=1))
            latents.append(self.prediction_projector(predicted))
            states.append(latents[-1])
        return torch.stack(states, dim=1).to(latents_BTD.dtype)  # under autocast they come out narrower

    @torch.no_grad()
    def uncached_rollout(
        self, history: History, actions: Float[Tensor, "envs samples horizon A"]
    ) -> Float[Tensor, "envs samples horizon D"]:
        """Return what :meth:`rollout` returns, every window computed whole."""
        num_envs, num_samples, horizon, _ = actions.shape
        latents, past_actions = self._repeated(history, num_samples)
        all_actions = torch.cat([past_actions, actions.flatten(0, 1)], dim=1)
        was_training = self.training
        self.eval()
        for _ in range(horizon):
            stop = latents.shape[1]
            start = max(0, stop - self.predictor.history)
            predicted = self.predict(latents[:, start:], all_actions[:, start:stop])[:, -1:]
            latents = torch.cat([latents, predicted], dim=1)
        self.train(was_training)
        return latents[:, -horizon:].unflatten(0, (num_envs, num_samples))

    def _repeated(self, history: History, num_samples: int) -> tuple[Tensor, Tensor]:
        """Return the last steps of a history, one row for each candidate."""
        states = history.states[:, -self.predictor.history :]
        past_actions = history.actions[:, history.actions.shape[1] - states.shape[1] + 1 :]
        return states.repeat_interleave(num_samples, dim=0), past_actions.repeat_interleave(num_samples, dim=0)


def _projector(num_in: int, width: int, num_out: int) -> nn.Sequential:
    """Return a projector whose output has no norm: the regulariser shapes it."""
    return nn.Sequential(nn.Linear(num_in, width), nn.BatchNorm1d(width), nn.GELU(), nn.Linear(width, num_out))
