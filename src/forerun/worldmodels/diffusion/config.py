"""Options of the models of D-MPC, and the sizes that have a name."""

from dataclasses import dataclass, field
from typing import Final, Literal

from forerun.core.errors import ConfigError
from forerun.models.denoiser import DenoiserConfig
from forerun.worldmodels.diffusion.noise_schedule import NoiseScheduleConfig
from forerun.worldmodels.diffusion.sampler import SamplerConfig
from forerun.worldmodels.diffusion.stitching import StateValueConfig
from forerun.worldmodels.diffusion.waves import WaveConfig

ScaleName = Literal["smoke", "small", "paper"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """Options of one diffusion model.

    Attributes:
        denoiser: The network.
        schedule: Noise levels and what the network guesses.
        sampler: How samples are drawn, unless a call says otherwise.
        focus: Share of a batch whose noise levels are those that this sampler visits, in [0, 1]; the rest has any.
            Few steps visit few levels, and with any level alike a network learns most where it is never asked.
    """

    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    schedule: NoiseScheduleConfig = field(default_factory=NoiseScheduleConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    focus: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.focus <= 1:
            raise ConfigError(f"focus={self.focus}: must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class DmpcConfig:
    """Options of all models of D-MPC.

    Attributes:
        history: H, states that the models see.
        horizon: F, steps that they propose and predict.
        discount: Of the return that the values learn.
        proposal: The action proposal.
        dynamics: The multi-step dynamics.
        value: Shape of the values' networks.
        waves: Numbers of a state that all models but the state value see as waves too.
        state_value: What the value of a state learns.
        wide_share: See :class:`~forerun.worldmodels.diffusion.action_proposal.ProposalOptions`.
    """

    history: int = 1
    horizon: int = 16
    discount: float = 0.99
    proposal: DiffusionConfig = field(default_factory=DiffusionConfig)
    dynamics: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(sampler=SamplerConfig(clip=5.0)))
    value: DenoiserConfig = field(default_factory=DenoiserConfig)
    waves: WaveConfig = field(default_factory=WaveConfig)
    state_value: StateValueConfig = field(default_factory=StateValueConfig)
    wide_share: float = 0.0

    def __post_init__(self) -> None:
        if self.history < 1 or self.horizon < 1:
            raise ConfigError(f"history={self.history}, horizon={self.horizon}: must be at least 1")
        if not 0 < self.discount < 1:
            raise ConfigError(f"discount={self.discount}: must lie in (0, 1)")


def dmpc_config(
    scale: ScaleName,
    *,
    history: int,
    horizon: int,
    discount: float,
    waves: WaveConfig | None = None,
    state_value: StateValueConfig | None = None,
) -> DmpcConfig:
    """Return the options of a named scale.

    Args:
        scale: ``smoke`` trains in seconds and ``small`` in minutes on a CPU; ``paper`` has the paper's networks and
            sampling steps, for a GPU.
        history: H.
        horizon: F.
        discount: Of the values' return.
        waves: See :class:`DmpcConfig`; ``None``: none.
        state_value: Likewise; ``None``: the data's returns.

    Reference:
        Zhou et al. 2024 (arXiv 2410.05364), appendices E.1, E.4 and F, for ``paper``; its prediction target is not
        known.
    """
    denoiser, value = _NETWORKS[scale]
    num_proposal_steps, num_dynamics_steps = _STEPS[scale]
    return DmpcConfig(
        history=history,
        horizon=horizon,
        discount=discount,
        proposal=DiffusionConfig(
            denoiser=denoiser, sampler=SamplerConfig(num_inference_steps=num_proposal_steps, clip=1.0)
        ),
        dynamics=DiffusionConfig(
            denoiser=denoiser,
            sampler=SamplerConfig(num_inference_steps=num_dynamics_steps, clip=5.0),
            focus=_FOCUS[scale],
        ),
        value=value,
        waves=waves or WaveConfig(),
        state_value=state_value or StateValueConfig(),
        wide_share=_WIDE_SHARES[scale],
    )


_NETWORKS: Final[dict[ScaleName, tuple[DenoiserConfig, DenoiserConfig]]] = {
    "smoke": (DenoiserConfig(width=128, depth=2), DenoiserConfig(width=96, depth=2)),
    "small": (DenoiserConfig(width=256, depth=3), DenoiserConfig(width=192, depth=2)),
    "paper": (
        DenoiserConfig(kind="transformer", width=256, depth=5, num_heads=8, head_dim=128, inner_width=2048),
        DenoiserConfig(kind="transformer", width=256, depth=10, num_heads=8, head_dim=128, inner_width=2048),
    ),
}
"""Networks of the two diffusion models, and of the values."""

_STEPS: Final[dict[ScaleName, tuple[int, int]]] = {"smoke": (5, 3), "small": (2, 1), "paper": (32, 10)}
"""Denoising steps of the proposal and of the dynamics; why ``small`` has so few is measured in the log."""

_FOCUS: Final[dict[ScaleName, float]] = {"smoke": 0.0, "small": 0.9, "paper": 0.0}
"""Of the dynamics: with one step there is one level that counts."""

_WIDE_SHARES: Final[dict[ScaleName, float]] = {"smoke": 0.0, "small": 1.0, "paper": 0.0}
"""Where two denoising steps from pure noise would halve the spread of the data."""
