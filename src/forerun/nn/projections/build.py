"""Projections by name."""

from typing import Final, Literal, get_args

from forerun.core.errors import ConfigError
from forerun.nn.projections.base import Projection, Words
from forerun.nn.projections.dense import DenseProjection
from forerun.nn.projections.fastfood import FastfoodProjection
from forerun.nn.projections.kronecker import KroneckerProjection
from forerun.nn.projections.sparse import SparseProjection

ProjectionName = Literal["dense", "sparse", "fastfood", "kronecker"]
PROJECTION_NAMES: Final[tuple[ProjectionName, ...]] = get_args(ProjectionName)

_KINDS: Final = {
    "dense": DenseProjection,
    "sparse": SparseProjection,
    "fastfood": FastfoodProjection,
    "kronecker": KroneckerProjection,
}


def build_projection(name: str, *, num_values: int, dim: int, words: Words) -> Projection:
    """Return a projection by its name.

    Args:
        name: One of :data:`PROJECTION_NAMES`.
        num_values: Values of the network.
        dim: Coefficients.
        words: Source of its random words.

    Raises:
        ConfigError: The name is unknown, or the numbers are unusable for it.
    """
    if name not in _KINDS:
        raise ConfigError(f"projection={name!r}: must be {', '.join(PROJECTION_NAMES)}")
    return _KINDS[name](num_values=num_values, dim=dim, words=words)
