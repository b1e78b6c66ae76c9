"""A model computes in a narrow format while its weights stay wide."""

import pytest
import torch
from torch import nn

from forerun.training.lowered import lowered


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.outer.weight = self.inner.weight

    def forward(self, x):
        return self.outer(self.inner(x.to(self.inner.weight.dtype)))


def test_the_arithmetic_is_narrow_and_the_gradient_wide():
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(3, 4)
    weight = model.inner.weight
    with lowered(model, torch.bfloat16):
        assert model.inner.weight is model.outer.weight
        assert model.inner.weight.dtype == torch.bfloat16
        out = model(x)
        assert out.dtype == torch.float32
        out.sum().backward()
    narrow = weight.detach().bfloat16()
    assert torch.equal(out.detach(), (x.bfloat16() @ narrow.T @ narrow.T).float())
    assert model.inner.weight is weight is model.outer.weight
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert model(x).dtype == torch.float32
    assert not torch.equal(model(x), out)


def test_the_weights_come_back_after_an_error():
    model = Tied()
    weight = model.inner.weight
    with pytest.raises(ZeroDivisionError), lowered(model, torch.bfloat16):
        raise ZeroDivisionError
    assert model.inner.weight is weight
    assert dict(model.named_parameters()) == {"inner.weight": weight}
