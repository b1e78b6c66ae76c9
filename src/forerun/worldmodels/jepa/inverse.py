"""Which actions lead from here to there: an inverse model over embeddings, whose guesses a planner begins with.

A search from nothing spends most of its candidates on actions that lead nowhere. A small network that learned what was
done between two frames of an episode, on frozen embeddings, gives candidates that are about right; a search that scores
them beside its own needs fewer iterations.

Reference:
    Amortised planning by inverse dynamics for latent world models (arXiv 2605.08732); here as proposals to a search,
    which checks them by the world model.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from forerun.core.control import History
from forerun.core.generator import keyed_generator
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.nn.first_weights import seeded_weights
from forerun.training.loop import LoopConfig, TrainingLoop
from forerun.worldmodels.jepa.model import Jepa


@dataclass(frozen=True, kw_only=True, slots=True)
class InverseConfig:
    """Size and training of an inverse model.

    Attributes:
        horizon: Actions that it guesses; goals may be as many blocks ahead or fewer.
        width: Of its two hidden layers.
        num_steps: Optimiser steps.
        batch_size: Pairs of frames of a step.
        learning_rate: Peak.
        seed: Of weights and batches.
    """

    horizon: int = 5
    width: int = 256
    num_steps: int = 1500
    batch_size: int = 256
    learning_rate: float = 2e-3
    seed: int = 0


class InverseModel:
    """Guesses the actions between two embeddings.

    Args:
        network: From present and goal, one after the other, to ``horizon`` actions, flat.
        residual_std: Of what is left after the guess, for each of the actions.
    """

    def __init__(self, network: nn.Module, residual_std: Float[Tensor, "horizon A"]) -> None:
        self._network, self.residual_std = network, residual_std

    @classmethod
    def of_episodes(cls, model: Jepa, episodes: PixelEpisodes, config: InverseConfig) -> "InverseModel":
        """Fit to the embeddings of some episodes under a world model."""
        return cls.fit(
            model.encode_all(torch.from_numpy(episodes.pixels)),
            model.standardised(torch.from_numpy(episodes.actions).float()),
            torch.from_numpy(episodes.last_rows).repeat_interleave(torch.from_numpy(episodes.lengths)),
            config,
        )

    @classmethod
    def fit(
        cls,
        latents: Float[Tensor, "frames D"],
        actions: Float[Tensor, "frames A"],
        last_rows: Int64[Tensor, " frames"],
        config: InverseConfig,
    ) -> "InverseModel":
        """Fit to pairs of frames that are 1 to ``horizon`` blocks apart; actions after the second one don't count.

        Args:
            latents: Embeddings, episode after episode.
            actions: What was done after each, in units of about 1.
            last_rows: Row of the last frame of each frame's episode.
            config: Size and training.
        """
        horizon, action_dim = config.horizon, actions.shape[1]
        starts = (last_rows > torch.arange(len(latents))).nonzero().squeeze(1)
        with seeded_weights(config.seed, "inverse"):
            network = nn.Sequential(
                nn.Linear(2 * latents.shape[1], config.width), nn.GELU(),
                nn.Linear(config.width, config.width), nn.GELU(),
                nn.Linear(config.width, horizon * action_dim),
            )  # fmt: skip

        def pairs(step: int) -> tuple[Tensor, Tensor, Tensor]:
            """Return (present and goal, actions, which of them lie between)."""
            generator = keyed_generator(config.seed, "inverse", step)
            rows = starts[torch.randint(len(starts), (config.batch_size,), generator=generator)]
            apart = 1 + torch.randint(horizon, (config.batch_size,), generator=generator)
            goals = torch.minimum(rows + apart, last_rows[rows])
            between = torch.arange(horizon) < (goals - rows)[:, None]
            taken = actions[torch.minimum(rows[:, None] + torch.arange(horizon), last_rows[rows][:, None])]
            return torch.cat([latents[rows], latents[goals]], dim=1), taken, between

        def squared_errors(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            ends, taken, between = batch
            return (network(ends).unflatten(1, (horizon, action_dim)) - taken).square() * between[:, :, None]

        TrainingLoop(
            network,
            LoopConfig(num_steps=config.num_steps, learning_rate=config.learning_rate, weight_decay=1e-3),
            batch_at=pairs,
            loss=lambda batch: squared_errors(batch).sum() / (batch[2].sum() * action_dim),
        ).run()
        with torch.no_grad():
            ends, taken, between = pairs(config.num_steps)
            count = between.sum(dim=0).clamp(min=1)[:, None]
            variance = squared_errors((ends, taken, between)).sum(dim=0) / count
        return cls(network.eval(), variance.sqrt())

    @torch.no_grad()
    def guess(
        self, present: Float[Tensor, "envs D"], goals: Float[Tensor, "envs D"]
    ) -> Float[Tensor, "envs horizon A"]:
        """Return the likeliest actions from each present to its goal."""
        return self._network(torch.cat([present, goals], dim=1)).unflatten(1, self.residual_std.shape)

    def towards(self, goals: Float[Tensor, "envs D"]) -> "InverseProposal":
        """Return proposals of the way to some goals, one for each environment."""
        return InverseProposal(self, goals)


class InverseProposal:
    """The guess first, then the guess with as much noise as it was wrong by in training.

    Args:
        inverse: Guesses.
        goals: One for each environment.
    """

    def __init__(self, inverse: InverseModel, goals: Float[Tensor, "envs D"]) -> None:
        self._inverse, self._goals = inverse, goals
        self.horizon, self.action_dim = inverse.residual_std.shape

    def propose(
        self,
        history: History,
        num_samples: int,
        *,
        generator: torch.Generator,
        warm_start: Float[Tensor, "envs horizon action"] | None = None,
    ) -> Float[Tensor, "envs samples horizon action"]:
        """As :meth:`forerun.core.protocols.ActionProposal.propose`; a warm start is ignored."""
        guess = self._inverse.guess(history.present, self._goals)
        shape = (len(guess), num_samples, self.horizon, self.action_dim)
        noise = torch.randn(shape, generator=generator).to(guess.device)
        noise[:, 0] = 0
        return guess[:, None] + self._inverse.residual_std * noise
