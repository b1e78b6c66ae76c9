"""How much of a sample is left at each noise level, and what a network's guess says about the clean sample.

A noisy sample is x = signal * clean + noise * epsilon. Level 0 is clean (signal 1: the cumulative alpha *after the last
denoising step* is 1 exactly), level T = ``num_train_timesteps`` is nearly pure noise.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from forerun.core.errors import ConfigError

PredictionType = Literal["epsilon", "sample", "v_prediction", "velocity"]
"""What the network guesses: the noise, the clean sample, signal * epsilon - noise * clean, or epsilon - clean."""

_COSINE_OFFSET = 0.008
_MAX_BETA = 0.999


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseScheduleConfig:
    """Options of :class:`NoiseSchedule`.

    Attributes:
        kind: ``cosine``: variance preserving, signal² + noise² = 1. ``flow``: straight lines, signal + noise = 1.
        num_train_timesteps: T, levels of training.
        prediction_type: What the network guesses; ``velocity`` goes with ``flow``, ``v_prediction`` with ``cosine``.
    """

    kind: Literal["cosine", "flow"] = "cosine"
    num_train_timesteps: int = 32
    prediction_type: PredictionType = "sample"

    def __post_init__(self) -> None:
        if self.num_train_timesteps < 1:
            raise ConfigError(f"num_train_timesteps={self.num_train_timesteps}: must be at least 1")
        other = {"flow": "v_prediction", "cosine": "velocity"}[self.kind]
        if self.prediction_type == other:
            raise ConfigError(
                f"prediction_type={self.prediction_type!r} with kind={self.kind!r}: must be epsilon, sample, "
                "v_prediction (cosine) or velocity (flow)"
            )


class NoiseSchedule:
    """Signal and noise at every level.

    Args:
        config: Which schedule.

    Reference:
        Nichol and Dhariwal 2021 (arXiv 2102.09672), equation 17, for ``cosine``; Lipman et al. 2022 (arXiv 2210.02747)
        for ``flow``; Salimans and Ho 2022 (arXiv 2202.00512) for ``v_prediction``.
    """

    def __init__(self, config: NoiseScheduleConfig) -> None:
        self.config = config
        count = config.num_train_timesteps
        if config.kind == "flow":
            noise = torch.linspace(0.0, 1.0, count + 1, dtype=torch.float64)
            signal = 1.0 - noise
        else:
            places = torch.arange(count + 1, dtype=torch.float64) / count
            kept = torch.cos((places + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * (math.pi / 2)) ** 2
            betas = (1.0 - kept[1:] / kept[:-1]).clamp(max=_MAX_BETA)
            alphas_cumprod = torch.cat([torch.ones(1, dtype=torch.float64), (1.0 - betas).cumprod(0)])
            signal, noise = alphas_cumprod.sqrt(), (1.0 - alphas_cumprod).sqrt()
        self.signal: Float[Tensor, " levels"] = signal.float()
        self.noise: Float[Tensor, " levels"] = noise.float()

    @property
    def alphas_cumprod(self) -> Float[Tensor, " levels"]:
        """signal², from level 0 on."""
        return self.signal**2

    def inference_levels(self, num_inference_steps: int, *, first: float = 1.0) -> list[int]:
        """Return the levels that a sampler visits, from the noisy end to 0.

        Args:
            num_inference_steps: Denoising steps from pure noise; fewer are taken where ``first`` is lower.
            first: Where to begin, as a share of T in (0, 1].

        Raises:
            ConfigError: There are more steps than levels, or none.
        """
        count = self.config.num_train_timesteps
        if not 1 <= num_inference_steps <= count:
            raise ConfigError(
                f"num_inference_steps={num_inference_steps}: must lie in [1, num_train_timesteps={count}]"
            )
        begin = max(1, round(first * count))
        steps = max(1, math.ceil(first * num_inference_steps))
        levels = [round(begin * (1 - step / steps)) for step in range(steps + 1)]
        return sorted(set(levels), reverse=True)

    def noised(
        self, clean: Float[Tensor, "rows ..."], epsilon: Float[Tensor, "rows ..."], level: Int64[Tensor, " rows"]
    ) -> Float[Tensor, "rows ..."]:
        """Return the samples at a level of noise each."""
        return self._at(self.signal, level, clean) * clean + self._at(self.noise, level, clean) * epsilon

    def target(
        self, clean: Float[Tensor, "rows ..."], epsilon: Float[Tensor, "rows ..."], level: Int64[Tensor, " rows"]
    ) -> Float[Tensor, "rows ..."]:
        """Return what the network should say."""
        match self.config.prediction_type:
            case "epsilon":
                return epsilon
            case "sample":
                return clean
            case "v_prediction":
                return self._at(self.signal, level, clean) * epsilon - self._at(self.noise, level, clean) * clean
            case "velocity":
                return epsilon - clean

    def clean(
        self, noisy: Float[Tensor, "rows ..."], guess: Float[Tensor, "rows ..."], level: int
    ) -> Float[Tensor, "rows ..."]:
        """Return the clean samples that a guess at one level stands for."""
        signal, noise = float(self.signal[level]), float(self.noise[level])
        match self.config.prediction_type:
            case "epsilon":
                # The flow's last level has no signal at all; what is clipped afterwards needs only the direction.
                return (noisy - noise * guess) / max(signal, 1e-4)
            case "sample":
                return guess
            case "v_prediction":
                return signal * noisy - noise * guess
            case "velocity":
                return noisy - noise * guess

    @staticmethod
    def _at(values: Tensor, level: Tensor, like: Tensor) -> Tensor:
        return values.to(like.device)[level].view(-1, *[1] * (like.ndim - 1))
