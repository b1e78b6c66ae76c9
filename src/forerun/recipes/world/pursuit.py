"""What came of a wish in words: where the known quantities ended, and how often a limit was broken, in the world.

The planner saw pictures; what is told here are the true states that it never saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forerun.planning.expression import ObjectiveLanguage
from forerun.recipes.world.play import Played


@dataclass(frozen=True, kw_only=True, slots=True)
class Pursued:
    """What somebody made of a wish.

    Attributes:
        name: Who.
        final: Each known quantity at the end, mean over the tasks.
        broken_share: For each limit the share of frames after the first that break it.
    """

    name: str
    final: dict[str, float]
    broken_share: dict[str, float]

    @classmethod
    def of(cls, name: str, played: Played, state_names: Sequence[str], constraints: Sequence[str]) -> "Pursued":
        """Return what was pursued.

        Args:
            name: Who acted.
            played: What happened.
            state_names: Of the task.
            constraints: The limits, as text.

        Raises:
            ConfigError: A limit can't be read.
        """
        language = ObjectiveLanguage(state_names, {})
        states = played.positions.swapaxes(0, 1)[:, 1:]
        return cls(
            name=name,
            final=dict(zip(state_names, played.positions[-1].mean(axis=0).tolist(), strict=True)),
            broken_share={
                text: float((language.constraint(text).violations(states) > 0).mean()) for text in constraints
            },
        )

    def line(self) -> str:
        """Return it on one line."""
        ends = ", ".join(f"{name} {value:.1f}" for name, value in self.final.items())
        broken = "".join(f"; {text} broken in {share:.1%} of the frames" for text, share in self.broken_share.items())
        return f"{self.name:<32} ended at {ends} in the mean{broken}"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {"name": self.name, "final": self.final, "broken_share": self.broken_share}
