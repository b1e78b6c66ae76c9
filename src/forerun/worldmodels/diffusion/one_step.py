"""Baselines that are no diffusion: an ensemble of one-step networks, and plain behaviour cloning."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forerun.core.control import History
from forerun.data.normalizer import Normalizer
from forerun.data.windows import Window
from forerun.models.denoiser import DenoiserConfig
from forerun.worldmodels.diffusion.frame import Frame
from forerun.worldmodels.diffusion.mlp_ensemble import MlpEnsemble


class OneStepEnsemble(MlpEnsemble):
    """Several networks that predict the next state; a rollout follows their mean, step by step.

    Args:
        frame: Units of what is given.
        change: Units of the change of a state in one step.
        num_members: Networks, with starts and batches of their own.
        width: Of their two hidden layers.
    """

    def __init__(self, frame: Frame, change: Normalizer, *, num_members: int = 3, width: int = 256) -> None:
        action_dim, state_dim = len(frame.actions.shift), len(change.shift)
        super().__init__(frame.context_dim + action_dim, state_dim, num_members=num_members, width=width)
        self.frame, self.change, self.action_dim = frame, change, action_dim

    def loss(self, window: Window, *, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the mean squared error of every member over the first step, each on its own draw of the batch."""
        inputs = torch.cat([self.frame.window_context(window), self.frame.actions(window.actions[:, 0])], dim=-1)
        targets = self.change(window.following[:, 0] - window.states[:, -1])
        return self.resampled_error(inputs, targets, generator=generator)

    @torch.no_grad()
    def rollout(
        self,
        history: History,
        actions: Float[Tensor, "envs samples horizon action"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "envs samples horizon state"]:
        """As :meth:`forerun.core.protocols.Dynamics.rollout`; draws nothing."""
        num_envs, num_samples, steps, _ = actions.shape
        rows = num_envs * num_samples
        seen = history.states.repeat_interleave(num_samples, dim=0)
        done = history.actions.repeat_interleave(num_samples, dim=0)
        planned = actions.flatten(0, 1)
        states = []
        for step in range(steps):
            context = self.frame.context(History(states=seen, actions=done))
            inputs = torch.cat([context, self.frame.actions(planned[:, step])], dim=-1)
            mean = self.predicted(inputs.expand(self.num_members, rows, -1)).mean(dim=0)
            state = seen[:, -1] + self.change.inverse(mean.clamp(-8.0, 8.0))
            states.append(state)
            keep = self.frame.history - 1
            done = torch.cat([done, planned[:, step : step + 1]], dim=1)[:, -keep:] if keep else done
            seen = torch.cat([seen, state[:, None]], dim=1)[:, -(keep + 1) :]
        return torch.stack(states, dim=1).unflatten(0, (num_envs, num_samples))


class CloningProposal(nn.Module):
    """Behaviour cloning of F actions by one network; proposals are its guess with Gaussian noise.

    Args:
        config: Shape of the network, an MLP.
        frame: Units.
        horizon: F.
        noise_std: Of the proposals beyond the first, which is the guess itself; in units of half the actions' box.
    """

    def __init__(self, config: DenoiserConfig, frame: Frame, *, horizon: int, noise_std: float = 0.2) -> None:
        super().__init__()
        self.frame, self.horizon, self.action_dim = frame, horizon, len(frame.actions.shift)
        self._noise_std = noise_std
        inner = config.inner_width or 2 * config.width
        self.network = nn.Sequential(
            nn.Linear(frame.context_dim, inner),
            nn.SiLU(),
            nn.Linear(inner, inner),
            nn.SiLU(),
            nn.Linear(inner, horizon * self.action_dim),
        )

    def loss(self, window: Window, *, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the mean squared error over the real steps; draws nothing."""
        errors = (self._guess(self.frame.window_context(window)) - self.frame.actions(window.actions)) ** 2
        weights = window.is_real.float()[..., None]
        return (errors * weights).sum() / (weights.sum() * self.action_dim)

    @torch.no_grad()
    def propose(
        self,
        history: History,
        num_samples: int,
        *,
        generator: torch.Generator,
        warm_start: Float[Tensor, "envs horizon action"] | None = None,
    ) -> Float[Tensor, "envs samples horizon action"]:
        """As :meth:`forerun.core.protocols.ActionProposal.propose`; a warm start is ignored."""
        guess = self._guess(self.frame.context(history))[:, None]
        noise = torch.randn((len(guess), num_samples, self.horizon, self.action_dim), generator=generator)
        noise[:, 0] = 0.0
        return self.frame.actions.inverse((guess + self._noise_std * noise).clamp(-1.0, 1.0))

    def _guess(self, context: Float[Tensor, "rows context"]) -> Float[Tensor, "rows horizon action"]:
        return self.network(context).unflatten(-1, (self.horizon, self.action_dim))
