"""Options of one pre-training run, and the sizes and recipes that have a name."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal, get_args

from forerun.core.errors import ConfigError

Size = Literal["6k", "25k", "75k", "150k", "250k", "440k", "800k", "3m", "6m", "12m", "28m"]
Recipe = Literal["standard", "regularised"]
Optimizer = Literal["adamw", "muon"]
Schedule = Literal["cosine", "wsd"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeConfig:
    """Shape of the decoder, apart from its vocabulary.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the gated MLP.
        num_layers: Layers.
        num_heads: Attention heads; each has keys and values of its own.
        tie_embeddings: Whether the output head is the embedding.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.hidden_size % (2 * self.num_heads):
            raise ConfigError(
                f"hidden_size={self.hidden_size}: must be an even multiple of num_heads={self.num_heads}, for the "
                "rotary embedding turns pairs within a head"
            )


SHAPES: Final[dict[Size, ShapeConfig]] = {
    "6k": ShapeConfig(hidden_size=16, intermediate_size=40, num_layers=2, num_heads=1),
    "25k": ShapeConfig(hidden_size=32, intermediate_size=88, num_layers=2, num_heads=2),
    "75k": ShapeConfig(hidden_size=56, intermediate_size=152, num_layers=2, num_heads=4),
    "150k": ShapeConfig(hidden_size=64, intermediate_size=168, num_layers=3, num_heads=4),
    "250k": ShapeConfig(hidden_size=72, intermediate_size=192, num_layers=4, num_heads=6),
    "440k": ShapeConfig(hidden_size=96, intermediate_size=256, num_layers=4, num_heads=6),
    "800k": ShapeConfig(hidden_size=128, intermediate_size=344, num_layers=4, num_heads=8),
    "3m": ShapeConfig(hidden_size=256, intermediate_size=640, num_layers=4, num_heads=4),
    "6m": ShapeConfig(hidden_size=320, intermediate_size=864, num_layers=5, num_heads=5),
    "12m": ShapeConfig(hidden_size=384, intermediate_size=1024, num_layers=7, num_heads=6),
    "28m": ShapeConfig(hidden_size=512, intermediate_size=1376, num_layers=9, num_heads=8),
}
"""Shapes by their number of parameters without embedding and head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """One run. Its hash, with that of the data, names its folder.

    Attributes:
        shape: Shape of the decoder.
        unique_tokens: Tokens of the training split that are used, from its start; ``None`` for all.
        num_epochs: Passes over them.
        sequence_tokens: Tokens predicted in one sequence.
        batch_sequences: Sequences of an optimiser step.
        learning_rate: Peak, from which the schedule falls to 0.
        weight_decay: Decoupled, on matrices only, embeddings among them.
        warmup_fraction: Share of the steps in which the learning rate rises.
        clip_norm: Largest norm of the gradient.
        tune_tokens: Held-out tokens to measure on: the openings of all documents, or of as many as fit.
        tune_every_epochs: Epochs between measurements; the last epoch always has one.
        seed: Root of initial weights and of the order of the data.
        checkpoint_every: Steps between checkpoints.
        optimizer: AdamW, or Muon for the matrices inside the layers.
        schedule: ``cosine``, or ``wsd``: the peak is held until a linear fall at the end.
        decay_fraction: Share of the steps in which ``wsd`` falls.
        dropout: Share of what each attention and MLP adds that is left out in training.
        average_decay: Share of an exponential average of the weights that stays at each step; it is what is measured
            and written. 0 keeps none.
        precision: Of the arithmetic of training. With ``bfloat16`` weights, moments and gradients are still float32,
            and so are the loss, held-out losses and the model that is written.
        gradient_checkpointing: Whether a layer's inner values are computed again for the gradient instead of kept:
            less memory, a third more work, the same numbers.
    """

    shape: ShapeConfig = field(default_factory=lambda: SHAPES["150k"])
    unique_tokens: int | None = None
    num_epochs: int = 8
    sequence_tokens: int = 128
    batch_sequences: int = 8
    learning_rate: float = 6e-3
    weight_decay: float = 1.6
    warmup_fraction: float = 0.01
    clip_norm: float = 1.0
    tune_tokens: int = 65_536
    tune_every_epochs: int = 1
    seed: int = 0
    checkpoint_every: int = 200
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "cosine"
    decay_fraction: float = 0.2
    dropout: float = 0.0
    average_decay: float = 0.0
    precision: Precision = "float32"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in (
            "num_epochs",
            "sequence_tokens",
            "batch_sequences",
            "tune_tokens",
            "tune_every_epochs",
            "checkpoint_every",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.unique_tokens is not None and self.unique_tokens < 2:
            raise ConfigError(f"unique_tokens={self.unique_tokens}: must be at least 2; leave it out for all")
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"learning_rate={self.learning_rate}: must be above 0; 6e-3 suits the small sizes")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"weight_decay={self.weight_decay}: must be 0 or more; 0.1 is standard")
        if self.learning_rate * self.weight_decay >= 1:
            raise ConfigError(
                f"learning_rate={self.learning_rate} times weight_decay={self.weight_decay} must stay below 1: a step "
                "would turn the weights' signs"
            )
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(f"warmup_fraction={self.warmup_fraction}: must be in [0, 1)")
        if not self.clip_norm > 0:
            raise ConfigError(f"clip_norm={self.clip_norm}: must be above 0; 1 is usual")
        for name, choices in (("optimizer", Optimizer), ("schedule", Schedule), ("precision", Precision)):
            allowed = get_args(choices)
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}")
        if not 0 < self.decay_fraction <= 1:
            raise ConfigError(f"decay_fraction={self.decay_fraction}: must be in (0, 1]; 0.2 is usual")
        for name, usual in (("dropout", "0.1"), ("average_decay", "0.99")):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be in [0, 1); {usual} is usual, 0 is off")

    def identity(self) -> dict[str, Any]:
        """Return what names a run: every option, but for the later ones that are at their defaults.

        So an option that comes with a new version leaves the runs of older ones their names.
        """
        defaults = {option.name: option.default for option in fields(self) if option.name in _LATER_OPTIONS}
        return {name: value for name, value in asdict(self).items() if name not in defaults or value != defaults[name]}


_LATER_OPTIONS: Final = frozenset(
    {
        "optimizer",
        "schedule",
        "decay_fraction",
        "dropout",
        "average_decay",
        "precision",
        "gradient_checkpointing",
    }
)


WEIGHT_DECAY: Final[dict[Recipe, float]] = {"standard": 0.1, "regularised": 1.6}
"""Where tuning starts: the usual decay, and one from the range that a limited corpus wants.

Reference:
    Kim et al. 2025 (arXiv 2509.14786): about 30 times the usual weight decay, more for larger models.
"""
