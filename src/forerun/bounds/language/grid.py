"""What a language message may choose from, fixed before the text is seen."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from forerun.bounds.language import verifier
from forerun.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageGrid:
    """Options, each list uniformly likely; the model itself is fixed by the format (see the verifier).

    Attributes:
        smoothings: Shares of the uniform law in the law of a byte, in (0, 1); bounds a byte's score.
        weight_steps: Sizes of a step of a weight, in 1/256.
        vote_steps: Sizes of a step of a vote, in 1/64 nat.
        bias_steps: Sizes of a step of a bias, in 1/64 nat.
        rates: Rates of the token-level bound, per bit; their number is paid by that bound.
        stakes: Stakes of the document-level bound, in (0, 1); paid likewise.
    """

    smoothings: tuple[float, ...] = tuple(2.0**-power for power in range(4, 20, 2))
    weight_steps: tuple[int, ...] = (4, 8, 16, 32)
    vote_steps: tuple[int, ...] = (4, 8, 16, 32)
    bias_steps: tuple[int, ...] = (8, 16, 32, 64)
    rates: tuple[float, ...] = tuple(2.0 ** (-step / 4) for step in range(12, 44))
    stakes: tuple[float, ...] = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95)

    def __post_init__(self) -> None:
        for name, options in asdict(self).items():
            if not options or len(set(options)) != len(options) or min(options) <= 0:
                raise ConfigError(f"{name}={options}: needs at least one value, all positive, and none twice")
        for name in ("smoothings", "stakes"):
            if max(getattr(self, name)) >= 1:
                raise ConfigError(f"{name}={getattr(self, name)}: each must be under 1")

    def as_json(self) -> dict[str, Any]:
        """Return the grid as it stands in a certificate."""
        return {name: list(options) for name, options in asdict(self).items()}

    @property
    def sha256(self) -> str:
        """Digest to publish before the text is seen; the verifier is told which one to expect."""
        return verifier.grid_sha256(json.loads(json.dumps(self.as_json())))


BYTES_GRID: Final = LanguageGrid()
"""Of ``forerun certify --task bytes``, whatever the text; the verifier knows its digest."""
