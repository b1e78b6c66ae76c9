"""Laws of tokens by tensor operations: processed, drawn from, and used to verify drafts, as the host does, bit for bit.

A law is scores, minus infinity where a token has no probability. Sums are such that no order of adding changes them
(:mod:`forerun.core.numerics`), and all else is one operation at a time, rounded the same everywhere.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from forerun.core.numerics import PART_UNITS
from forerun.nn.truncation import Truncation, exp_weights, truncation_cut

_LEAST_RESIDUAL: Final = PART_UNITS**-2
"""As in :mod:`forerun.engine.speculative.rejection`."""


def processed_scores(
    logits: Float[Tensor, "*rows columns"], temperatures: Float64[Tensor, "*rows"], truncation: Truncation | None
) -> Float32[Tensor, "*rows columns"]:
    """Return the law of each row with a temperature, as scores, and the logits of the greedy ones.

    Args:
        logits: Of each row.
        temperatures: 0 where greedy.
        truncation: What each row with a temperature keeps; ``None``: everything.
    """
    is_greedy = (temperatures == 0).unsqueeze(-1)
    scores = logits.float() / torch.where(is_greedy, 1.0, temperatures.unsqueeze(-1).float())
    if truncation is None:
        return scores
    is_kept = is_greedy | (scores >= truncation_cut(scores, truncation))
    return torch.where(is_kept, scores, -torch.inf)


def is_broken(scores: Float[Tensor, "*rows columns"]) -> Bool[Tensor, "*rows"]:
    """Return whether the largest score of a row is not finite."""
    return ~scores.amax(dim=-1).isfinite()


def first_of_largest(scores: Float[Tensor, "*rows columns"]) -> Int64[Tensor, "*rows"]:
    """Return the first column of the largest score of each row.

    On every device: argmax promises no order among equals, which bfloat16 has often.
    """
    columns = torch.arange(scores.shape[-1], device=scores.device)
    is_largest = scores == scores.amax(dim=-1, keepdim=True)
    return torch.where(is_largest, columns, scores.shape[-1] - 1).amin(dim=-1)


def law_weights(scores: Float32[Tensor, "*rows columns"]) -> Float64[Tensor, "*rows columns"]:
    """Return what the probabilities of a law are in proportion to (:class:`forerun.engine.law.ProcessedLaw`)."""
    return exp_weights(scores - scores.amax(dim=-1, keepdim=True))


def running_sums(weights: Float64[Tensor, "*rows columns"]) -> Float64[Tensor, "*rows columns"]:
    """Return what :func:`forerun.core.numerics.running_sums` does, of each row."""
    scaled = weights * PART_UNITS
    whole = scaled.long()
    rest = ((scaled - whole) * PART_UNITS).long()
    return whole.cumsum(dim=-1).double() + rest.cumsum(dim=-1).double() / PART_UNITS


def normalized(weights: Float64[Tensor, "*rows columns"]) -> Float64[Tensor, "*rows columns"]:
    """Return weights in [0, 1] over the sum of their row."""
    return weights / (running_sums(weights)[..., -1:] / PART_UNITS)


def quantile_columns(
    weights: Float64[Tensor, "*rows columns"], uniforms: Float64[Tensor, "*rows"]
) -> Int64[Tensor, "*rows"]:
    """Return the column at a quantile of each row's weights, as :func:`forerun.engine.law.quantile_index` does.

    Args:
        weights: In [0, 1], with a positive sum.
        uniforms: Numbers in (0, 1).
    """
    cumulative = running_sums(weights)
    total = cumulative[..., -1:]
    reached = (cumulative <= uniforms.unsqueeze(-1) * total).sum(dim=-1)
    # Where the product rounds up to the total, the last column that has any weight.
    return torch.minimum(reached, (cumulative < total).sum(dim=-1))


class Drafted(NamedTuple):
    """What was drafted after each row.

    Attributes:
        tokens: int64, vocabulary ids; -1 where nothing was.
        accepts: float64, the uniform number that the token is accepted by.
        has_laws: int64, whether the token was drawn from a law; ``None``: none was.
        scores: float32 ``[*rows, drafted columns]``, that law; of no account elsewhere.
        columns: int64, which of the target's columns the draft's are.
    """

    tokens: Int64[Tensor, "*rows"]
    accepts: Float64[Tensor, "*rows"]
    has_laws: Int64[Tensor, "*rows"] | None = None
    scores: Float32[Tensor, "*rows drafted"] | None = None
    columns: Int64[Tensor, " drafted"] | None = None

    @classmethod
    def of(
        cls, arrays: Mapping[str, Tensor], *, scores: Tensor | None = None, columns: Tensor | None = None
    ) -> "Drafted | None":
        """Return what a pass's arrays (:class:`forerun.core.selection.Selection`) say was drafted, if anything was."""
        if "drafted" not in arrays:
            return None
        return cls(arrays["drafted"], arrays["accepts"], arrays.get("has_laws"), scores, columns)


def drawn_tokens(
    scores: Float32[Tensor, "*rows columns"],
    temperatures: Float64[Tensor, "*rows"],
    draws: Float64[Tensor, "*rows"],
    ids: Int64[Tensor, " columns"],
    *,
    drafted: Drafted | None = None,
) -> Int64[Tensor, "*rows"]:
    """Return the token of each row: the likeliest, or with a temperature one drawn from its law.

    Where a token was drafted after the row, it is that one if it is accepted, else a draw from the residual: what
    :func:`forerun.engine.speculative.rejection.verify_rejection` decides there.

    Args:
        scores: What :func:`processed_scores` gives.
        temperatures: 0 takes the likeliest token.
        draws: The uniform number that a token is drawn by.
        ids: Vocabulary ids of the columns, ascending.
        drafted: What was drafted; ``None``: nothing.

    Returns:
        Vocabulary ids; -1 where the largest score is not finite.
    """
    weights = law_weights(scores)
    if drafted is None:
        columns = quantile_columns(weights, draws)
    else:
        columns = _verified_columns(weights, draws, ids, drafted)
    columns = torch.where(temperatures == 0, first_of_largest(scores), columns)
    return torch.where(is_broken(scores), -1, ids[columns])


def _verified_columns(weights: Tensor, draws: Tensor, ids: Tensor, drafted: Drafted) -> Tensor:
    column = torch.searchsorted(ids, drafted.tokens.clamp(min=0)).clamp(max=ids.shape[0] - 1).unsqueeze(-1)
    p = normalized(weights)
    q = torch.zeros_like(p).scatter(-1, column, 1.0)
    if drafted.has_laws is not None and drafted.scores is not None and drafted.columns is not None:
        of_draft = normalized(law_weights(drafted.scores))
        drawn_from = torch.zeros_like(p).index_copy(-1, drafted.columns, of_draft)
        q = torch.where((drafted.has_laws != 0).unsqueeze(-1), drawn_from, q)
    p_of_token, q_of_token = p.gather(-1, column).squeeze(-1), q.gather(-1, column).squeeze(-1)
    is_row = drafted.tokens >= 0
    is_accepted = is_row & (q_of_token > 0) & (drafted.accepts < p_of_token / q_of_token)

    residual = (p - q).clamp(min=0.0)
    has_residual = residual.amax(dim=-1, keepdim=True) >= _LEAST_RESIDUAL
    residual = torch.where(has_residual, residual, p)
    drawn = quantile_columns(torch.where(is_row.unsqueeze(-1), residual, weights), draws)
    return torch.where(is_accepted, column.squeeze(-1), drawn)
