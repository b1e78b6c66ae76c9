"""Options of a world model, of its loss and of its training; configurations that have a name."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final, Literal

from forerun.core.errors import ConfigError
from forerun.models.vit import VitConfig
from forerun.worldmodels.jepa.encoder import ENCODERS, CnnConfig, EncoderConfig, KeypointConfig, encoder_kind
from forerun.worldmodels.jepa.predictor import PredictorConfig
from forerun.worldmodels.jepa.sigreg import SigRegConfig

RegularizerName = Literal["sigreg", "vicreg", "ema"]


@dataclass(frozen=True, kw_only=True, slots=True)
class JepaConfig:
    """Shape of a world model; the defaults are the published ones.

    Attributes:
        encoder: Of one frame.
        predictor: Of the next embedding.
        latent_dim: Numbers of an embedding.
        projector_width: Hidden width of the two projectors.
        action_width: Numbers that an action is reduced to before it is embedded.
    """

    encoder: EncoderConfig = field(default_factory=VitConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    latent_dim: int = 192
    projector_width: int = 2048
    action_width: int = 10

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: A width is below 1.
        """
        for name in ("latent_dim", "projector_width", "action_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)}: must be >= 1")

    def to_json(self) -> dict[str, Any]:
        """Return the shape as JSON types; :meth:`from_json` reads it."""
        return asdict(self) | {"encoder": {"kind": encoder_kind(self.encoder)} | asdict(self.encoder)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "JepaConfig":
        """Return the shape that :meth:`to_json` wrote.

        Raises:
            ConfigError: A name is unknown or a value out of range.
        """
        parts = dict(record)
        encoder = dict(parts.pop("encoder"))
        encoder_class = ENCODERS[encoder.pop("kind")]
        predictor = _built(PredictorConfig, parts.pop("predictor"))
        return _built(cls, parts | {"encoder": _built(encoder_class, encoder), "predictor": predictor})


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """What training minimises: the prediction error, and something against collapse.

    Attributes:
        regularizer: ``sigreg``: the published loss, target not detached. ``vicreg``: variance and covariance instead.
            ``ema``: no regulariser, the target comes from an average of the weights and is detached.
        weight: Lambda, the factor of the regulariser; 0 leaves it out.
        sigreg: How SIGReg measures.
        ema_decay: Share of the target's weights that stays at a step.
    """

    regularizer: RegularizerName = "sigreg"
    weight: float = 0.09
    sigreg: SigRegConfig = field(default_factory=SigRegConfig)
    ema_decay: float = 0.996

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: An option is out of range.
        """
        if self.regularizer not in ("sigreg", "vicreg", "ema"):
            raise ConfigError(f"regularizer={self.regularizer!r}: must be 'sigreg', 'vicreg' or 'ema'")
        if not 0 <= self.weight < float("inf"):
            raise ConfigError(f"lambda={self.weight}: must be finite and >= 0; 0 leaves the regulariser out")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay={self.ema_decay}: must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class JepaTrainConfig:
    """How to train a world model; the defaults are the published ones.

    Attributes:
        model: Its shape.
        objective: What is minimised.
        num_steps: Optimiser steps.
        batch_size: Windows of a step; each has ``predictor.history`` + 1 frames.
        learning_rate: Peak.
        weight_decay: Decoupled, on matrices only (the reference decays vectors too).
        warmup_fraction: Share of the steps in which the rate rises; a cosine falls from there.
        final_rate_fraction: Where the cosine ends. The published runs stop after a tenth of theirs: nearly constant.
        has_autocast: Whether matrix products run in bfloat16.
        monitor_every: Steps between looks at the model's health.
        checkpoint_every: Steps between checkpoints.
        held_out_fraction: Share of the episodes that training never sees.
        split_seed: Draws them; the same for runs that are compared.
        seed: Root of all other chance: weights, windows, directions, dropout.
    """

    model: JepaConfig = field(default_factory=JepaConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    num_steps: int = 140_000
    batch_size: int = 128
    learning_rate: float = 5e-5
    weight_decay: float = 1e-3
    warmup_fraction: float = 0.01
    final_rate_fraction: float = 0.97
    has_autocast: bool = True
    monitor_every: int = 1000
    checkpoint_every: int = 1000
    held_out_fraction: float = 0.2
    split_seed: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: An option is out of range.
        """
        for name in ("num_steps", "monitor_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be >= 1")
        if self.batch_size < 2:
            raise ConfigError(f"batch_size={self.batch_size}: must be >= 2; one window has no distribution")
        if not 0 < self.held_out_fraction < 1:
            raise ConfigError(f"held_out_fraction={self.held_out_fraction}: must lie in (0, 1)")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate={self.learning_rate}: must be > 0")


def _built(cls: Any, values: Mapping[str, Any]) -> Any:
    known = {item.name for item in fields(cls)}
    if unknown := set(values) - known:
        raise ConfigError(f"{cls.__name__}: unknown {sorted(unknown)}; known are {sorted(known)}")
    return cls(**values)


_SMALL: Final = JepaTrainConfig(
    model=JepaConfig(
        encoder=CnnConfig(image_size=32, num_channels=16, width=128),
        predictor=PredictorConfig(
            width=96, num_blocks=3, num_heads=4, head_dim=24, mlp_width=384, history=3, dropout=0.0
        ),
        latent_dim=32,
        projector_width=128,
    ),
    objective=ObjectiveConfig(weight=0.02, sigreg=SigRegConfig(num_projections=256)),
    num_steps=2000,
    batch_size=64,
    learning_rate=1e-3,
    final_rate_fraction=0.01,
    has_autocast=False,
    monitor_every=200,
    checkpoint_every=200,
)
_SMOKE: Final = JepaTrainConfig(
    model=JepaConfig(
        encoder=CnnConfig(image_size=32, num_channels=8, width=64),
        predictor=PredictorConfig(
            width=64, num_blocks=2, num_heads=4, head_dim=16, mlp_width=128, history=3, dropout=0.0
        ),
        latent_dim=32,
        projector_width=64,
    ),
    objective=ObjectiveConfig(weight=0.02, sigreg=SigRegConfig(num_projections=64)),
    num_steps=500,
    batch_size=64,
    learning_rate=2e-3,
    final_rate_fraction=0.01,
    has_autocast=False,
    monitor_every=100,
    checkpoint_every=200,
)

_MEDIUM: Final = JepaTrainConfig(
    model=JepaConfig(
        encoder=CnnConfig(image_size=64, num_channels=16, width=128),
        predictor=PredictorConfig(
            width=128, num_blocks=3, num_heads=4, head_dim=32, mlp_width=256, history=3, dropout=0.0
        ),
        latent_dim=64,
        projector_width=128,
    ),
    objective=ObjectiveConfig(weight=0.05, sigreg=SigRegConfig(num_projections=256)),
    num_steps=4000,
    batch_size=64,
    learning_rate=1e-3,
    final_rate_fraction=0.01,
    has_autocast=False,
    monitor_every=250,
    checkpoint_every=250,
)

_KEYPOINTS: Final = replace(_MEDIUM, model=replace(_MEDIUM.model, encoder=KeypointConfig(image_size=64)))

TRAIN_CONFIGS: Final[Mapping[str, JepaTrainConfig]] = {
    "paper": JepaTrainConfig(),
    "medium": _MEDIUM,
    "keypoints": _KEYPOINTS,
    "small": _SMALL,
    "smoke": _SMOKE,
}
"""``paper``: 18 million parameters at 224 pixels, for a GPU. ``medium``: 64 pixels, some twenty minutes on a
CPU. ``keypoints``: the same with an encoder that says where things are. ``small``: minutes. ``smoke``: a minute."""
