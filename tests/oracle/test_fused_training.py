"""The fused training step against the decoder's own operations under autograd."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, rms_norm

from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.fused_training import can_fuse, fused_next_token_loss
from forerun.nn import training_ops

CONFIG = DecoderConfig(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=6,
    max_len=64,
    tie_embeddings=False,
)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_decoder(**changes) -> Decoder:
    decoder = Decoder(replace(CONFIG, **changes))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return decoder


def loss_and_gradients(decoder, loss):
    decoder.zero_grad()
    value = loss(decoder)
    value.backward()
    return value.detach(), {name: parameter.grad for name, parameter in decoder.named_parameters()}


@pytest.mark.parametrize("num_tokens", [1, 31, 45, 64])
@pytest.mark.parametrize("tied", [False, True])
def test_loss_and_gradients_are_those_of_the_plain_decoder(num_tokens, tied):
    """Lengths below, at and off the width of a vector; in float64 the plain decoder says what is right."""
    decoder = make_decoder(tie_embeddings=tied)
    assert can_fuse(decoder, num_tokens=num_tokens)
    ids = torch.randint(61, (5, num_tokens + 1), generator=torch.Generator().manual_seed(1))
    value, gradients = loss_and_gradients(decoder, lambda model: fused_next_token_loss(model, ids))

    exact = make_decoder(tie_embeddings=tied).double()
    expected, right = loss_and_gradients(
        exact, lambda model: cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    )
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for name, gradient in right.items():
        distance = (gradients[name].double() - gradient).norm()
        assert distance < 3e-6 * gradient.norm() + 1e-12, f"{name}: {distance}"


def test_the_loss_of_many_rows_is_that_of_their_parts():
    """More rows than exist at a time, and a last part that is not full; the factor before the loss is followed."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(600, 8, generator=generator, requires_grad=True)
    head = torch.randn(11, 8, generator=generator, requires_grad=True)
    targets = torch.randint(11, (600,), generator=generator)
    ours = torch.autograd.grad(3 * training_ops.linear_cross_entropy(hidden, head, targets), (hidden, head))
    plain = torch.autograd.grad(3 * cross_entropy(hidden @ head.T, targets), (hidden, head))
    for got, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-8)


def test_norm_alone():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 7, 10, generator=generator, requires_grad=True)
    weight = torch.randn(10, generator=generator, requires_grad=True)
    around = torch.randn(2, 7, 10, generator=generator)
    ours, plain = training_ops.rms_norm(x, weight, eps=0.1), rms_norm(x, (10,), weight, eps=0.1)
    torch.testing.assert_close(ours, plain)
    for got, expected in zip(
        torch.autograd.grad(ours, (x, weight), around), torch.autograd.grad(plain, (x, weight), around), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "changes",
    [{"num_kv_heads": 2}, {"qk_norm": True}, {"attention_bias": True}, {"sliding_window": 8}],
)
def test_what_the_fused_step_does_not_know_is_left_to_the_decoder(changes):
    assert not can_fuse(make_decoder(**changes), num_tokens=8)


def test_other_threads_lengths_formats_and_dropout_are_left_to_the_decoder():
    decoder = make_decoder()
    assert can_fuse(decoder, num_tokens=8)
    assert not can_fuse(decoder, num_tokens=4096)
    decoder.set_dropout(0.1)
    assert not can_fuse(decoder, num_tokens=8)
    assert not can_fuse(make_decoder().bfloat16(), num_tokens=8)
    torch.set_num_threads(2)
    assert not can_fuse(make_decoder(), num_tokens=8)
