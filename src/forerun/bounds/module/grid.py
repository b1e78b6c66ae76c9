"""The prior over the parameters of a module: which module, and what a message may choose from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from forerun.bounds import verifier
from forerun.bounds.module.factory import (
    Factory,
    build_module,
    factory_name,
    load_factory,
    source_digests,
    start_sha256,
)
from forerun.bounds.verifier import MAGNITUDE_BITS, MIN_SYMBOLS
from forerun.core.errors import ConfigError
from forerun.nn.projections.build import PROJECTION_NAMES
from forerun.nn.subspace_module import count_trained

STANDARD_DIMS: Final = (8, 16, 24, 40, 60, 80, 100, 120, 160, 200, 240, 300, 400, 600, 800, 1000)
STANDARD_LEVELS: Final = (3, 5, 7, 9)
STANDARD_SEEDS: Final = (0, 1, 2, 3)


def standard_choices(num_values: int) -> dict[str, list[Any]]:
    """Return the lists of options that a message has unless others were fixed beforehand.

    Args:
        num_values: Trained values of the module; no subspace has more dimensions.
    """
    return {
        "projections": list(PROJECTION_NAMES),
        "subspace_dims": [dim for dim in STANDARD_DIMS if dim <= num_values],
        "levels": list(STANDARD_LEVELS),
        "seeds": list(STANDARD_SEEDS),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleGrid:
    """What a message may choose from, each list uniformly; and the module, which is fixed.

    Attributes:
        factory: ``PACKAGE.MODULE:FACTORY``.
        sources: Digest of each file that defines the module, by the name of its Python module.
        starts: Digest of the module at its start, for each seed.
        num_values: Trained values.
        input_shape: Of one example, as the module reads it.
        num_classes: Scores that it gives.
        projections: From coefficients to trained values.
        subspace_dims: Numbers of coefficients.
        levels: Numbers of quantisation levels, odd.
        seeds: Of start and projection.
        base_is_independent: The user's word that the tensors loaded into the start were made without these data;
            ``None`` where none were.
    """

    factory: str
    sources: tuple[tuple[str, str], ...]
    starts: tuple[str, ...]
    num_values: int
    input_shape: tuple[int, ...]
    num_classes: int
    projections: tuple[str, ...]
    subspace_dims: tuple[int, ...]
    levels: tuple[int, ...]
    seeds: tuple[int, ...]
    base_is_independent: bool | None = None

    def __post_init__(self) -> None:
        if self.num_values < MIN_SYMBOLS:
            raise ConfigError(
                f"factory={self.factory!r}: trains {self.num_values} values; needs at least {MIN_SYMBOLS}"
            )

    def as_json(self) -> dict[str, Any]:
        """Return the grid as it stands in a certificate."""
        return {
            "factory": self.factory,
            "sources_sha256": dict(self.sources),
            "starts_sha256": list(self.starts),
            "num_values": self.num_values,
            "base_is_independent": self.base_is_independent,
            "input_shape": list(self.input_shape),
            "num_classes": self.num_classes,
            "magnitude_bits": MAGNITUDE_BITS,
            "projections": list(self.projections),
            "subspace_dims": list(self.subspace_dims),
            "levels": list(self.levels),
            "seeds": list(self.seeds),
        }

    @property
    def sha256(self) -> str:
        """Digest to publish before the data are seen; the verifier is told which one to expect."""
        return verifier.grid_sha256(json.loads(json.dumps(self.as_json())))


def open_grid(
    factory: str | Factory,
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    base: Path | None = None,
    base_is_independent: bool = False,
) -> ModuleGrid:
    """Return the standard grid of a module.

    Args:
        factory: The module's, or its name.
        input_shape: Of one example.
        num_classes: Scores.
        base: Tensors that its start takes from a file.
        base_is_independent: The user's word that they were made without the data.

    Raises:
        ConfigError: The factory can't be found, does not give the same twice, or the base is not independent.
    """
    name = factory_name(factory)
    make = load_factory(name)
    if base is not None and not base_is_independent:
        raise ConfigError(
            f"base={base}: the certificate holds only if it was made without these data; say so with "
            "--base-is-independent, or leave it out"
        )
    starts: list[str] = []
    for seed in STANDARD_SEEDS:
        first, second = (start_sha256(build_module(make, seed, base=base)) for _ in range(2))
        if first != second:
            raise ConfigError(
                f"factory={name!r}: two calls with seed {seed} start with other values; draw them from PyTorch's own "
                "generator, which is seeded before each call"
            )
        starts.append(first)
    module = build_module(make, STANDARD_SEEDS[0], base=base)
    sources = source_digests(make, module)
    num_values = count_trained(module)
    return ModuleGrid(
        factory=name,
        sources=tuple(sources.items()),
        starts=tuple(starts),
        num_values=num_values,
        input_shape=input_shape,
        num_classes=num_classes,
        base_is_independent=None if base is None else base_is_independent,
        **{key: tuple(options) for key, options in standard_choices(num_values).items()},
    )
