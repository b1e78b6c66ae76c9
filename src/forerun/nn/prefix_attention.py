r"""Attention in two parts: a prefix that all rows of a sequence see, and a few slots that each row sees its own way.

The rows of a verification, or of a draft tree, share nearly all that they attend to. So the long part needs no mask of
rows by slots, only a length, and is read once for all rows and heads of a group; the rest is a small block with a mask
of ancestors.

The scores of both parts are put side by side for one softmax (:func:`joint_attention`): few operations, each of which
is a launch on a GPU. Or each part, computed by a kernel of its own, gives its output and the log-sum-exp of its scores,
which is all that is needed to join them:

.. math:: y = \frac{\sum_i e^{l_i} y_i}{\sum_i e^{l_i}}, \qquad l_i = \log \sum_{s \in i} e^{q \cdot k_s / \sqrt d}

Shape legend: N sequences, R rows, G key/value heads, P query heads of each, D head_dim, S slots of a part.

Reference:
    The joining rule is that of online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867).
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Final, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

UNSEEN: Final = -1e30
"""What is added to the score of a slot that a row does not see: its weight is 0 beside any that is seen. It is finite,
so that a row that sees nothing gets numbers, which nobody reads, and not what would spread."""

AttentionBackend = Literal["matmul", "flex"]
"""How the prefix is read: by two matrix products (any device), or by FlexAttention (one kernel once compiled)."""


class AttentionPart(NamedTuple):
    """What attending to some of the slots gives.

    Attributes:
        out: float32 ``[N, G, R, P, D]``; 0 where a row sees none of them.
        lse: float32 ``[N, G, R, P]``, the log of the sum of exponentiated scores; minus infinity where it sees none.
    """

    out: Tensor
    lse: Tensor


def joint_attention(
    q_NGRPD: Float[Tensor, "N G R P D"],
    parts: Sequence[tuple[Tensor, Tensor]],
    bias_NRS: Float32[Tensor, "N R S"],
) -> Float[Tensor, "N G R P D"]:
    """Attend to the slots of all parts, by matrix products and one softmax.

    Args:
        q_NGRPD: Queries, by the key/value head that they read.
        parts: Keys and values ``[N, G, slots, D]`` of each; a view of a cache is read in place.
        bias_NRS: Of each row, what is added to the scores of the parts' slots, one part after the other: 0, or
            :data:`UNSEEN`.
    """
    num, groups, rows, heads, width = q_NGRPD.shape
    flat = (num, groups, rows * heads, -1)
    q = q_NGRPD.reshape(flat)
    scores = [q @ keys.transpose(-1, -2) for keys, _ in parts]
    joined = scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1)
    joined = joined.view(num, groups, rows, heads, -1)
    weights = torch.add(bias_NRS[:, None, :, None, :], joined, alpha=width**-0.5).softmax(dim=-1)
    weights = weights.to(q.dtype).view(flat)
    each = weights.split([values.shape[2] for _, values in parts], dim=-1)
    mixed = [some @ values for some, (_, values) in zip(each, parts, strict=True)]
    return reduce(torch.add, mixed).view(num, groups, rows, heads, width)


def masked_part(
    q_NGRPD: Float[Tensor, "N G R P D"],
    k_NGSD: Float[Tensor, "N G S D"],
    v_NGSD: Float[Tensor, "N G S D"],
    visible_NRS: Bool[Tensor, "N _ S"],
) -> AttentionPart:
    """Attend to the slots that a mask allows, by two matrix products.

    Args:
        q_NGRPD: Queries, by the key/value head that they read.
        k_NGSD: Keys; a view of a cache is read in place.
        v_NGSD: Values.
        visible_NRS: Which slots each row sees; one row for all where they see the same.
    """
    num, groups, rows, heads, width = q_NGRPD.shape
    flat = (num, groups, rows * heads, -1)
    scores = (q_NGRPD.reshape(flat) @ k_NGSD.transpose(-1, -2)).float() * width**-0.5
    scores = scores.view(num, groups, rows, heads, -1).masked_fill(~visible_NRS[:, None, :, None, :], -torch.inf)
    peak = _finite(scores.amax(dim=-1, keepdim=True))
    weights = (scores - peak).exp()
    total = weights.sum(dim=-1)
    out = (weights.reshape(flat).to(v_NGSD.dtype) @ v_NGSD).float().view(num, groups, rows, heads, width)
    return AttentionPart(out / _positive(total).unsqueeze(-1), peak.squeeze(-1) + total.log())


def flex_prefix_part(
    q_NGRPD: Float[Tensor, "N G R P D"],
    k_NGSD: Float[Tensor, "N G S D"],
    v_NGSD: Float[Tensor, "N G S D"],
    lengths_N: Int64[Tensor, " N"],
    *,
    attend: Callable[..., tuple[Tensor, Any]],
) -> AttentionPart:
    """Attend to the first slots of each sequence, by FlexAttention.

    Args:
        q_NGRPD: Queries, by the key/value head that they read.
        k_NGSD: Keys; a view of a cache is read in place.
        v_NGSD: Values.
        lengths_N: Slots that all rows of a sequence see.
        attend: ``flex_attention`` of torch, compiled or not.
    """
    from torch.nn.attention.flex_attention import AuxRequest  # takes long to import

    num, groups, rows, heads, width = q_NGRPD.shape

    def within(score: Tensor, batch: Tensor, _head: Tensor, _row: Tensor, slot: Tensor) -> Tensor:
        return torch.where(slot < lengths_N[batch], score, -torch.inf)

    q_NHRD = q_NGRPD.transpose(2, 3).reshape(num, groups * heads, rows, width)
    wanted = AuxRequest(lse=True)
    out, aux = attend(q_NHRD, k_NGSD, v_NGSD, score_mod=within, enable_gqa=heads > 1, return_aux=wanted)
    is_empty = (lengths_N == 0)[:, None, None, None]
    lse = aux.lse.float().view(num, groups, heads, rows).transpose(2, 3).masked_fill(is_empty, -torch.inf)
    out = out.float().view(num, groups, heads, rows, width).transpose(2, 3)
    return AttentionPart(out.masked_fill(is_empty.unsqueeze(-1), 0.0), lse)


def merge_parts(first: AttentionPart, second: AttentionPart) -> Float32[Tensor, "N G R P D"]:
    """Return the attention over the slots of both parts, which have none in common; 0 where a row sees nothing."""
    peak = _finite(torch.maximum(first.lse, second.lse))
    weights = ((first.lse - peak).exp(), (second.lse - peak).exp())
    total = _positive(weights[0] + weights[1])
    return first.out * (weights[0] / total).unsqueeze(-1) + second.out * (weights[1] / total).unsqueeze(-1)


def _finite(peak: Tensor) -> Tensor:
    """Return 0 for minus infinity: where nothing is seen, there is nothing to scale."""
    return torch.where(peak == -torch.inf, 0.0, peak)


def _positive(total: Tensor) -> Tensor:
    return total.clamp(min=torch.finfo(torch.float32).tiny)
