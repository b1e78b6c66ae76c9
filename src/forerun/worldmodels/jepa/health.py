"""Health of a world model: numbers that show a collapse while success at planning still hides it.

A collapsed model predicts well, since nothing changes, and even plans above chance, since a planner only ranks. What
gives it away is looked at here, on frames that training never sees.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from forerun.core.generator import keyed_generator
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.worldmodels.jepa.model import Jepa
from forerun.worldmodels.jepa.probes import LinearProbe, r_squared
from forerun.worldmodels.jepa.sigreg import SigRegConfig, draw_directions, expected_statistic, sigreg_statistic

_GAUSSIANITY: Final = SigRegConfig(num_projections=128)
_GAUSSIANITY_BATCH: Final = 128
LEAST_STD: Final = 0.25
LEAST_RANK: Final = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What one look found, on held-out frames in evaluation mode.

    Attributes:
        embedding_std: Standard deviation over frames, mean over dimensions; SIGReg aims at 1.
        effective_rank: Exponential of the entropy of the covariance's eigenvalues: directions in use.
        gaussianity: SIGReg's statistic over what a Gaussian sample gives, in batches of 128; 1 is Gaussian.
        prediction_over_copying: Squared error of the predicted embedding over that of the last embedding itself; below
            1, or the model knows nothing of what actions do.
        action_sensitivity: Share of the squared error with other windows' actions that the right actions take away: 0
            where actions are ignored, 1 where they decide everything.
        straightness: Mean cosine between successive moves of the embedding.
        probe_r2: R² of each known quantity, read off held-out embeddings by a linear map fitted on training ones.
    """

    embedding_std: float
    effective_rank: float
    gaussianity: float
    prediction_over_copying: float
    action_sensitivity: float
    straightness: float
    probe_r2: dict[str, float]

    @property
    def mean_probe_r2(self) -> float | None:
        """The mean over the known quantities, ``None`` without any."""
        return sum(self.probe_r2.values()) / len(self.probe_r2) if self.probe_r2 else None

    def to_json(self) -> dict[str, Any]:
        """Return every number as JSON types."""
        return asdict(self) | {"mean_probe_r2": self.mean_probe_r2}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Health":
        """Return what :meth:`to_json` wrote."""
        return cls(**{item.name: record[item.name] for item in fields(cls)})

    def line(self) -> str:
        """Return every number on one line."""
        probe = "" if self.mean_probe_r2 is None else f"  probe R² {self.mean_probe_r2:.3f}"
        return (
            f"std {self.embedding_std:.3f}  rank {self.effective_rank:.1f}  gauss {self.gaussianity:.2f}  "
            f"pred/copy {self.prediction_over_copying:.2f}  actions {self.action_sensitivity:.2f}  "
            f"straight {self.straightness:+.2f}{probe}"
        )

    def collapse(self) -> str | None:
        """Return why these embeddings count as collapsed, or ``None`` for those that don't."""
        if not self.embedding_std >= LEAST_STD:
            return (
                f"embeddings shrink to a point: their standard deviation on held-out frames is "
                f"{self.embedding_std:.3g}, below {LEAST_STD}"
            )
        if not self.effective_rank >= LEAST_RANK:
            return (
                f"embeddings shrink to a line: the effective rank on held-out frames is {self.effective_rank:.2f}, "
                f"below {LEAST_RANK}"
            )
        return None

    def is_rising(self, before: "Health") -> bool:
        """Return whether what :meth:`collapse` finds too low has grown since a look before: fresh weights start low."""
        if not self.embedding_std >= LEAST_STD:
            return self.embedding_std > before.embedding_std
        return self.effective_rank > before.effective_rank


class HealthMonitor:
    """Looks at a model, always on the same frames.

    Args:
        training: Fits the probe.
        held_out: For everything else.
        num_frames: Frames and windows of each, at most.
        seed: Draws them.

    Raises:
        TrajectoryError: No held-out episode is long enough for a window.
    """

    def __init__(
        self, training: PixelEpisodes, held_out: PixelEpisodes, *, history: int, num_frames: int = 1024, seed: int = 0
    ) -> None:
        generator = keyed_generator(seed, "health")
        rows = _some(len(training.pixels), num_frames, generator)
        self._probe_pixels = torch.from_numpy(training.pixels)[rows]
        self._probe_targets = torch.from_numpy(training.states)[rows].float()
        rows = _some(len(held_out.pixels), num_frames, generator)
        self._pixels = torch.from_numpy(held_out.pixels)[rows]
        self._targets = torch.from_numpy(held_out.states)[rows].float()
        self._state_names = held_out.state_names
        starts = torch.from_numpy(held_out.window_rows(history + 1))
        starts = starts[_some(len(starts), max(2, num_frames // (history + 1)), generator)]
        window_rows = starts[:, None] + torch.arange(history + 1)
        self._window_pixels = torch.from_numpy(held_out.pixels)[window_rows]
        self._window_actions = torch.from_numpy(held_out.actions).float()[window_rows[:, :-1]]
        self._other = torch.roll(torch.arange(len(starts)), 1)

    @torch.no_grad()
    def look(self, model: Jepa) -> Health:
        """Measure; the model's mode and weights are as before."""
        latents = model.encode_all(self._pixels).cpu()
        was_training = model.training
        model.eval()
        window_BTD = model.encode_all(self._window_pixels.flatten(0, 1)).unflatten(0, self._window_pixels.shape[:2])
        actions_BTA = model.standardised(self._window_actions.to(model.device))
        before_BTD, after_BTD = window_BTD[:, :-1], window_BTD[:, 1:]
        error = _squared_error(model.predict(before_BTD, actions_BTA), after_BTD)
        other_error = _squared_error(model.predict(before_BTD, actions_BTA[self._other]), after_BTD)
        model.train(was_training)
        moves_BTD = after_BTD - before_BTD
        return Health(
            embedding_std=float(latents.std(dim=0).mean()),
            effective_rank=effective_rank(latents),
            gaussianity=gaussianity(latents),
            prediction_over_copying=error / max(_squared_error(before_BTD, after_BTD), 1e-30),
            action_sensitivity=1 - error / max(other_error, 1e-30),
            straightness=float(cosine_similarity(moves_BTD[:, :-1], moves_BTD[:, 1:], dim=-1).mean())
            if moves_BTD.shape[1] > 1
            else 0.0,
            probe_r2=self._probe_r2(model, latents),
        )

    def _probe_r2(self, model: Jepa, latents: Tensor) -> dict[str, float]:
        if not self._state_names:
            return {}
        probe = LinearProbe.fit(model.encode_all(self._probe_pixels).cpu(), self._probe_targets)
        values = r_squared(probe(latents), self._targets)
        return dict(zip(self._state_names, values.tolist(), strict=True))


def effective_rank(latents: Float[Tensor, "samples D"]) -> float:
    r"""Return :math:`\exp(-\sum_i p_i \ln p_i)` with p the eigenvalues of the covariance over their sum.

    Reference:
        Roy and Vetterli 2007, "The effective rank", there with singular values.
    """
    eigenvalues = torch.linalg.eigvalsh(torch.cov(latents.double().T)).clamp(min=0)
    shares = eigenvalues / eigenvalues.sum().clamp(min=1e-300)
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def gaussianity(latents: Float[Tensor, "samples D"]) -> float:
    """Return SIGReg's statistic in batches of 128 (or of all, if fewer) over its mean for Gaussian samples."""
    batch_size = min(_GAUSSIANITY_BATCH, len(latents))
    batches = latents[: len(latents) // batch_size * batch_size].unflatten(0, (-1, batch_size)).float()
    directions = draw_directions(
        latents.shape[1], _GAUSSIANITY.num_projections, generator=keyed_generator(0, "gaussianity")
    )
    return float(sigreg_statistic(batches @ directions, _GAUSSIANITY)) / expected_statistic(_GAUSSIANITY)


def _some(total: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(total, generator=generator)[:count]


def _squared_error(first: Tensor, second: Tensor) -> float:
    return float((first - second).square().mean())
