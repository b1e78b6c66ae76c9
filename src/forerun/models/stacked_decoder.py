"""Several decoders of one shape as one: their weights stacked, so that a pass of all of them is a pass of one.

The batch is the members' batches one after the other: rows ``m * B`` to ``(m + 1) * B`` are member m's. Everything
between the matrix products (attention, rotary embedding, activations) is the plain decoder's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, rms_norm

from forerun.models.decoder import Decoder


class StackedLinear(nn.Module):
    """A linear map for each member, in one batched product."""

    def __init__(self, members: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.out_features = members[0].out_features
        self.weight = _stacked([member.weight.T for member in members])
        biases = [member.bias for member in members if member.bias is not None]
        self.bias = _stacked([bias.unsqueeze(0) for bias in biases]) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        """Map the last dimension of ``[members * batch, ..., in]``."""
        rows = x.reshape(len(self.weight), -1, x.shape[-1])
        mapped = rows.bmm(self.weight) if self.bias is None else torch.baddbmm(self.bias, rows, self.weight)
        return mapped.view(*x.shape[:-1], self.out_features)


class StackedNorm(nn.Module):
    """An RMSNorm for each member."""

    def __init__(self, members: Sequence[nn.RMSNorm]) -> None:
        super().__init__()
        self.eps = members[0].eps
        self.weight = _stacked([member.weight.unsqueeze(0) for member in members])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of ``[members * batch, ..., width]``."""
        rows = rms_norm(x, x.shape[-1:], eps=self.eps).reshape(len(self.weight), -1, x.shape[-1])
        return (rows * self.weight).view(x.shape)


class StackedEmbedding(nn.Module):
    """An embedding for each member."""

    def __init__(self, members: Sequence[nn.Embedding]) -> None:
        super().__init__()
        self.num_members, self.num_rows = len(members), members[0].num_embeddings
        self.weight = nn.Parameter(torch.cat([member.weight.detach() for member in members]), requires_grad=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Look up ids ``[members * batch, ...]``, each in its member's table."""
        first_rows = torch.arange(self.num_members, device=token_ids.device).unsqueeze(1) * self.num_rows
        return embedding(token_ids.view(self.num_members, -1) + first_rows, self.weight).view(*token_ids.shape, -1)


def stack_decoders(members: Sequence[Decoder]) -> Decoder:
    """Return one decoder that computes all members.

    Args:
        members: Decoders of one configuration. The first is changed into the result; a stacked copy of a member's
            weights replaces them.

    Returns:
        A decoder whose batch is the members' batches one after the other.
    """
    for path, module in list(members[0].named_modules()):
        others = [member.get_submodule(path) for member in members]
        if stacked := _stack(module, others):
            parent, _, name = path.rpartition(".")
            setattr(members[0].get_submodule(parent), name, stacked)
    return members[0]


def _stack(module: nn.Module, members: Sequence[nn.Module]) -> nn.Module | None:
    if isinstance(module, nn.Linear):
        return StackedLinear([member for member in members if isinstance(member, nn.Linear)])
    if isinstance(module, nn.RMSNorm):
        return StackedNorm([member for member in members if isinstance(member, nn.RMSNorm)])
    if isinstance(module, nn.Embedding):
        return StackedEmbedding([member for member in members if isinstance(member, nn.Embedding)])
    return None


def _stacked(weights: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.stack([weight.detach().contiguous() for weight in weights]), requires_grad=False)
