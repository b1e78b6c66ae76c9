"""Top-k, top-p and min-p by tensor operations: the cuts that :mod:`forerun.engine.logits` finds, bit for bit.

Each of the three keeps the scores that reach a cut, so all of them keep those that reach the highest. The cut of top-p
needs sums of exponentials; these are whole units (:mod:`forerun.core.numerics`), whose sums have no rounding and so no
order, and each float32 operation before them is one that every machine rounds the same.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from forerun.core.numerics import (
    FIRST_COEFFICIENT,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    LOWEST,
    SERIES,
    UNITS,
)

_SERIES: Final = tuple(float(coefficient) for coefficient in SERIES)


class Truncation(NamedTuple):
    """What keeps a token, for each row.

    Attributes:
        top_ks: int64; 0 keeps all.
        top_ps: float64 in (0, 1]; 1 keeps all.
        log_min_ps: float64, the logarithm of min-p; minus infinity keeps all.
    """

    top_ks: Int64[Tensor, "*rows"]
    top_ps: Float64[Tensor, "*rows"]
    log_min_ps: Float64[Tensor, "*rows"]

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor]) -> "Truncation | None":
        """Return the truncation in a pass's arrays (:data:`forerun.core.selection.CHOICE_ARRAYS`), if there is one."""
        return cls(*(arrays[name] for name in cls._fields)) if "top_ks" in arrays else None

    def repeated(self, count: int) -> "Truncation":
        """Return it for rows ``[*rows, count]``."""
        return Truncation(*(values.unsqueeze(-1).expand(*values.shape, count) for values in self))


def exp_units(distances: Float32[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """Return what :func:`forerun.core.numerics.exp_units` does.

    Args:
        distances: Score less the largest of its row: at most 0.
    """
    return (_exp(distances) * float(UNITS)).long()


def exp_weights(distances: Float32[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """Return what :func:`forerun.core.numerics.exp_weights` does.

    Args:
        distances: As for :func:`exp_units`.
    """
    return torch.where(distances >= float(LOWEST), _exp(distances), 0.0).double()


def _exp(distances: Tensor) -> Tensor:
    x = distances.clamp(min=float(LOWEST))
    whole = (x * float(LOG2_E) + 0.5).floor()
    r = (x - whole * float(LN2_HIGH)) - whole * float(LN2_LOW)
    series = torch.full_like(r, float(FIRST_COEFFICIENT))
    for coefficient in _SERIES:
        series = series * r + coefficient
    power = ((whole.int() + 127) << 23).view(torch.float32)
    return series * power


def truncation_cut(scores: Float[Tensor, "*rows columns"], truncation: Truncation) -> Float32[Tensor, "*rows 1"]:
    """Return the least score that each row keeps: minus infinity where it keeps all.

    Args:
        scores: After the temperature; the largest of a row is finite.
        truncation: Of each row.
    """
    num_columns = scores.shape[-1]
    top_ks, top_ps = truncation.top_ks.unsqueeze(-1), truncation.top_ps.unsqueeze(-1)
    ordered = scores.sort(dim=-1, descending=True).values
    largest = ordered[..., :1]

    cuts_k = (top_ks > 0) & (top_ks < num_columns)
    cut_k = torch.where(cuts_k, ordered.gather(-1, (top_ks - 1).clamp(0, num_columns - 1)), -torch.inf)

    units = torch.where(ordered >= cut_k, exp_units(ordered - largest), 0)
    cumulative = units.cumsum(dim=-1).double()
    missing = cumulative < top_ps * cumulative[..., -1:]
    last = missing.sum(dim=-1, keepdim=True).clamp(max=num_columns - 1)
    cut_p = torch.where(top_ps < 1, ordered.gather(-1, last), -torch.inf)

    cut_min = (largest.double() + truncation.log_min_ps.unsqueeze(-1)).float()
    return torch.maximum(torch.maximum(cut_k, cut_p), cut_min)
