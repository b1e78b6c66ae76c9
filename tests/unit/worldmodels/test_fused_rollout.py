"""Fused roll-outs are the modules' roll-outs, whatever the model's shape, the history and the number of candidates."""

from dataclasses import replace

import pytest
import torch
from simulated.worlds import TINY_MODEL

from forerun.core.control import History
from forerun.core.generator import keyed_generator
from forerun.worldmodels.jepa.config import JepaConfig
from forerun.worldmodels.jepa.fused_rollout import can_fuse
from forerun.worldmodels.jepa.model import Jepa

WIDE = replace(TINY_MODEL, latent_dim=16)
SHAPES = {
    "narrow embeddings": TINY_MODEL,
    "embeddings as wide as tokens": WIDE,
    "one block": replace(WIDE, predictor=replace(WIDE.predictor, num_blocks=1)),
    "one frame": replace(WIDE, predictor=replace(WIDE.predictor, history=1)),
    "three blocks, inner width of its own": replace(
        WIDE, predictor=replace(WIDE.predictor, num_blocks=3, num_heads=3, head_dim=5, history=4)
    ),
}


def build(config: JepaConfig) -> Jepa:
    """A model all of whose weights matter, norms and batch norms included."""
    model = Jepa(config, action_dim=3)
    generator = keyed_generator(0, "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def history_of(model: Jepa, num_frames: int, num_envs: int) -> History:
    generator = keyed_generator(1, "history")
    return History(
        states=torch.randn(num_envs, num_frames, model.config.latent_dim, generator=generator),
        actions=torch.randn(num_envs, num_frames - 1, 3, generator=generator),
    )


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_the_same_states(name, num_frames):
    model = build(SHAPES[name])
    history = history_of(model, num_frames, 2)
    actions = torch.randn(2, 3, 6, 3, generator=keyed_generator(2, "actions"))
    with torch.no_grad():
        assert can_fuse(model.predictor)
        fused = model.rollout(history, actions, generator=keyed_generator(0))
        slow = model.uncached_rollout(history, actions)
        model.fuses_rollouts = False
        by_modules = model.rollout(history, actions, generator=keyed_generator(0))
    assert float(slow.std()) > 0.1
    torch.testing.assert_close(fused, slow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(by_modules, slow, rtol=1e-4, atol=1e-5)


def test_candidates_in_several_parts_and_one_after_the_other_do_not_touch():
    model = build(WIDE)
    history = history_of(model, 2, 1)
    actions = torch.randn(1, 300, 4, 3, generator=keyed_generator(3, "actions"))
    with torch.no_grad():
        whole = model.rollout(history, actions, generator=keyed_generator(0))
        kept = whole.clone()
        last = model.rollout(history, actions[:, 290:, :2], generator=keyed_generator(0))
    torch.testing.assert_close(last, kept[:, 290:, :2], rtol=1e-4, atol=1e-5)
    assert torch.equal(whole, kept)


def test_weights_are_those_of_the_moment_and_gradients_go_through_the_modules():
    model = build(WIDE)
    history = history_of(model, 1, 1)
    actions = torch.randn(1, 2, 3, 3, generator=keyed_generator(4, "actions"))
    with torch.no_grad():
        before = model.rollout(history, actions, generator=keyed_generator(0))
        model.prediction_projector[3].bias += 1.0
        after = model.rollout(history, actions, generator=keyed_generator(0))
    torch.testing.assert_close(after[:, :, 0], before[:, :, 0] + 1.0, rtol=1e-4, atol=1e-5)
    assert not can_fuse(model.predictor)
    leaf = actions.clone().requires_grad_()
    states = model.rollout(history, leaf, generator=keyed_generator(0))
    torch.testing.assert_close(states.detach(), after, rtol=1e-4, atol=1e-5)
    assert bool((torch.autograd.grad(states[..., -1, :].sum(), leaf)[0].abs().sum(dim=-1) > 0).all())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert not can_fuse(model.predictor)
        assert float((model.rollout(history, actions, generator=keyed_generator(0)).float() - after).abs().max()) < 1.0
