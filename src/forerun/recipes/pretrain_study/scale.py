"""How large a study is: the machine it suits, its sizes, ladders, members and text."""

from dataclasses import dataclass, replace
from typing import Final, Literal

from forerun.core.errors import ConfigError
from forerun.pretraining.config import SHAPES, WEIGHT_DECAY, Precision, PretrainConfig, Recipe, Size
from forerun.pretraining.tune import TuneConfig

ScaleName = Literal["smoke", "cpu", "gpu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyScale:
    """A study's extent.

    Attributes:
        name: What it is called.
        most_bytes: Text taken from the corpus; ``None`` for all.
        vocab_size: Tokens of the tokenizer, where the study prepares the corpus.
        unique_tokens: The limited corpus.
        multiples: How many times as much text the standard recipe gets besides, for data efficiency; the first is 1.
        sizes: Models, rising.
        sequence_tokens: Tokens of a sequence.
        batch_sequences: Sequences of a step.
        tune_tokens: Held-out tokens to choose by.
        test_tokens: Held-out tokens to report on.
        learning_rates: Ladder.
        weight_decays: Ladder of the regularised recipe.
        standard_epochs: Ladder of the standard recipe.
        regularised_epochs: Ladder of the regularised recipe.
        start: Learning rate, regularised weight decay, standard and regularised epochs where the search begins.
        num_seeds: Seeds of every tuned winner on the limited text; on more text, which takes longer, there is one.
        num_members: Members of every ensemble.
        student_sizes: Students of the best ensemble.
        teacher_weight: Share of the loss on real text that is the ensemble's, for its students: text that is seen so
            often teaches them more by the ensemble's law than by its own next tokens.
        self_weight: The same of a single teacher, whose student is of its own size.
        sampled_tokens: Text that a teacher writes for its students, tried beside real text alone; 0 for none.
        sampled_share: Share of the rows that is sampled, where there is such text.
        num_replicates: Replicates behind an interval.
        precision: Of the arithmetic of training.
    """

    name: str
    most_bytes: int | None
    vocab_size: int
    unique_tokens: int
    multiples: tuple[int, ...]
    sizes: tuple[Size, ...]
    sequence_tokens: int
    batch_sequences: int
    tune_tokens: int
    test_tokens: int
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    standard_epochs: tuple[int, ...]
    regularised_epochs: tuple[int, ...]
    start: tuple[float, float, int, int]
    num_seeds: int
    num_members: int
    student_sizes: tuple[Size, ...]
    teacher_weight: float = 1.0
    self_weight: float = 0.8
    sampled_tokens: int = 0
    sampled_share: float = 0.5
    num_replicates: int = 1000
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.multiples[:1] != (1,) or list(self.multiples) != sorted(set(self.multiples)):
            raise ConfigError(f"multiples={self.multiples}: must rise and begin with 1")
        if self.num_members < 2:
            raise ConfigError(f"num_members={self.num_members}: an ensemble needs at least 2")
        if not self.sizes or not self.student_sizes:
            raise ConfigError(f"sizes={self.sizes}, student_sizes={self.student_sizes}: must each name one at least")

    def run_config(self, size: Size, recipe: Recipe) -> PretrainConfig:
        """Return where the search for a size's best settings begins."""
        learning_rate, weight_decay, standard_epochs, regularised_epochs = self.start
        return PretrainConfig(
            shape=SHAPES[size],
            unique_tokens=self.unique_tokens,
            num_epochs=standard_epochs if recipe == "standard" else regularised_epochs,
            sequence_tokens=self.sequence_tokens,
            batch_sequences=self.batch_sequences,
            learning_rate=learning_rate,
            weight_decay=WEIGHT_DECAY["standard"] if recipe == "standard" else weight_decay,
            tune_tokens=self.tune_tokens,
            tune_every_epochs=4,
            precision=self.precision,
        )

    def tune_config(self, size: Size, recipe: Recipe, like: PretrainConfig | None) -> TuneConfig:
        """Return what to tune for a size; ``like`` is the winner of the size below, where the search then begins."""
        base = self.run_config(size, recipe)
        if like is not None:
            base = replace(
                base,
                learning_rate=like.learning_rate,
                weight_decay=like.weight_decay,
                num_epochs=like.num_epochs,
                unique_tokens=like.unique_tokens,
            )
        return TuneConfig(
            recipe=recipe,
            base=base,
            learning_rates=self.learning_rates,
            weight_decays=self.weight_decays,
            epochs=self.standard_epochs if recipe == "standard" else self.regularised_epochs,
            num_seeds=self.num_seeds if base.unique_tokens == self.unique_tokens else 1,
        )


SCALES: Final[dict[ScaleName, StudyScale]] = {
    "smoke": StudyScale(
        name="smoke",
        most_bytes=4_000_000,
        vocab_size=512,
        unique_tokens=8_192,
        multiples=(1, 2, 4),
        sizes=("6k", "25k"),
        sequence_tokens=64,
        batch_sequences=8,
        tune_tokens=8_192,
        test_tokens=32_768,
        learning_rates=(6e-3, 1.2e-2, 2.4e-2),
        weight_decays=(0.4, 1.6, 6.4),
        standard_epochs=(2, 4, 8),
        regularised_epochs=(2, 4, 8),
        start=(1.2e-2, 1.6, 4, 4),
        num_seeds=2,
        num_members=3,
        student_sizes=("6k",),
    ),
    "cpu": StudyScale(
        name="cpu",
        most_bytes=None,
        vocab_size=1024,
        unique_tokens=32_768,
        multiples=(1, 2, 4),
        sizes=("25k", "75k", "150k", "250k"),
        sequence_tokens=128,
        batch_sequences=8,
        tune_tokens=32_768,
        test_tokens=131_072,
        learning_rates=(1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2),
        weight_decays=(0.1, 0.4, 0.8, 1.6, 3.2, 6.4),
        standard_epochs=(2, 4, 8, 16),
        regularised_epochs=(4, 8, 16, 32),
        start=(6e-3, 1.6, 8, 16),
        num_seeds=3,
        num_members=5,
        student_sizes=("25k", "75k", "150k"),
    ),
    "gpu": StudyScale(
        name="gpu",
        most_bytes=None,
        vocab_size=8192,
        unique_tokens=2_097_152,
        multiples=(1, 2, 4),
        sizes=("3m", "6m", "12m", "28m"),
        sequence_tokens=512,
        batch_sequences=32,
        tune_tokens=262_144,
        test_tokens=1_048_576,
        learning_rates=(3.75e-4, 7.5e-4, 1.5e-3, 3e-3, 6e-3),
        weight_decays=(0.1, 0.4, 0.8, 1.6, 3.2, 6.4),
        standard_epochs=(2, 4, 8, 16),
        regularised_epochs=(4, 8, 16, 32),
        start=(1.5e-3, 1.6, 8, 16),
        num_seeds=3,
        num_members=5,
        student_sizes=("3m", "6m", "12m"),
        precision="bfloat16",
    ),
}
"""``smoke`` shows that everything works, in minutes; ``cpu`` is meant to show the paper's effects on a few cores.
``gpu`` has the paper's proportions at a size for one GPU and wants 9 million tokens of text; it has not been run."""
