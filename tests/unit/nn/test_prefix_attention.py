"""Attention in two parts against one dense product, on random numbers; float64 where the identity is exact."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from forerun.nn.prefix_attention import (
    UNSEEN,
    AttentionPart,
    flex_prefix_part,
    joint_attention,
    masked_part,
    merge_parts,
)

NUM, GROUPS, ROWS, HEADS, WIDTH, PREFIX, FEW = 3, 2, 5, 3, 16, 37, 9


@pytest.fixture
def problem():
    """Queries, keys and values; lengths of prefixes, none among them; few slots that each row sees its own way."""
    generator = torch.Generator().manual_seed(7)
    q = torch.randn(NUM, GROUPS, ROWS, HEADS, WIDTH, generator=generator)
    k, v = (torch.randn(NUM, GROUPS, PREFIX + FEW, WIDTH, generator=generator) for _ in range(2))
    lengths = torch.tensor([PREFIX, 11, 0])
    few = torch.rand(NUM, ROWS, FEW, generator=generator) < 0.5
    few[:, :, 0] = True
    return q, k, v, lengths, few


def visible_prefix(lengths) -> torch.Tensor:
    return (torch.arange(PREFIX) < lengths[:, None]).unsqueeze(1)


def dense(q, k, v, visible) -> torch.Tensor:
    """One product over all slots, in float64."""
    mask = visible[:, None].expand(-1, GROUPS * HEADS, -1, -1)
    heads = q.transpose(2, 3).reshape(NUM, GROUPS * HEADS, ROWS, WIDTH)
    out = scaled_dot_product_attention(heads.double(), k.double(), v.double(), attn_mask=mask, enable_gqa=True)
    return out.view(NUM, GROUPS, HEADS, ROWS, WIDTH).transpose(2, 3)


def all_visible(lengths, few) -> torch.Tensor:
    return torch.cat([visible_prefix(lengths).expand(-1, ROWS, -1), few], dim=2)


def test_two_parts_are_the_whole(problem):
    q, k, v, lengths, few = problem
    joined = merge_parts(
        masked_part(q, k[:, :, :PREFIX], v[:, :, :PREFIX], visible_prefix(lengths)),
        masked_part(q, k[:, :, PREFIX:], v[:, :, PREFIX:], few),
    )
    torch.testing.assert_close(joined.double(), dense(q, k, v, all_visible(lengths, few)), atol=2e-6, rtol=0)


def test_one_softmax_over_both_parts_is_the_whole(problem):
    q, k, v, lengths, few = problem
    visible = all_visible(lengths, few)
    bias = torch.where(visible, 0.0, UNSEEN)
    parts = [(k[:, :, :PREFIX], v[:, :, :PREFIX]), (k[:, :, PREFIX:], v[:, :, PREFIX:])]
    for sized in (1.0, 100.0):
        expected = dense(sized * q, k, v, visible)
        for some in (parts, [(k, v)]):
            found = joint_attention(sized * q, some, bias)
            torch.testing.assert_close(found.double(), expected, atol=2e-5 * sized, rtol=0)


def test_a_row_that_sees_nothing_gets_finite_numbers(problem):
    q, k, v, _, _ = problem
    found = joint_attention(q, [(k, v)], torch.full((NUM, ROWS, PREFIX + FEW), UNSEEN))
    assert found.isfinite().all()
    assert found.abs().max() <= v.abs().max()


def test_the_order_of_the_parts_is_of_no_account(problem):
    q, k, v, lengths, few = problem
    first = masked_part(q, k[:, :, :PREFIX], v[:, :, :PREFIX], visible_prefix(lengths))
    second = masked_part(q, k[:, :, PREFIX:], v[:, :, PREFIX:], few)
    torch.testing.assert_close(merge_parts(first, second), merge_parts(second, first))


def test_large_scores_neither_overflow_nor_vanish(problem):
    q, k, v, lengths, few = problem
    joined = merge_parts(
        masked_part(100 * q, k[:, :, :PREFIX], v[:, :, :PREFIX], visible_prefix(lengths)),
        masked_part(100 * q, k[:, :, PREFIX:], v[:, :, PREFIX:], few),
    )
    torch.testing.assert_close(joined.double(), dense(100 * q, k, v, all_visible(lengths, few)), atol=1e-4, rtol=0)


def test_a_row_that_sees_nothing_gives_nothing(problem):
    """Such rows are padding; a number that is not one would spread through the slot that they write to."""
    q, k, v, _, _ = problem
    part = masked_part(q, k, v, torch.zeros(NUM, 1, PREFIX + FEW, dtype=torch.bool))
    assert part.lse.eq(-torch.inf).all()
    assert merge_parts(part, part).eq(0).all()


def test_unseen_slots_have_no_say_whatever_they_hold(problem):
    q, k, v, lengths, few = problem
    clean = masked_part(q, k[:, :, PREFIX:], v[:, :, PREFIX:], few)
    k[:, :, PREFIX:].masked_fill_(~few.any(dim=1)[:, None, :, None], 1e30)
    torch.testing.assert_close(masked_part(q, k[:, :, PREFIX:], v[:, :, PREFIX:], few), clean)
    assert lengths.tolist() == [PREFIX, 11, 0]


@pytest.mark.parametrize("heads", [HEADS, 1])
def test_flex_attention_reads_the_same_prefix(problem, heads):
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v, lengths, _ = problem
    q, k, v = q[:, :, :, :heads], k[:, :, :PREFIX], v[:, :, :PREFIX]
    expected = masked_part(q, k, v, visible_prefix(lengths))
    found = flex_prefix_part(q, k, v, lengths, attend=flex_attention)
    assert isinstance(found, AttentionPart)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
