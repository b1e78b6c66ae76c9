"""Noise schedules and samplers against closed forms, denoisers and models against what they promise."""

import math

import pytest
import torch

from forerun.core.control import ActionBounds, History
from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator
from forerun.data.normalizer import Normalizer
from forerun.data.windows import Window
from forerun.models.denoiser import DenoiserConfig, build_denoiser
from forerun.worldmodels.diffusion.action_proposal import DiffusionProposal, ProposalOptions
from forerun.worldmodels.diffusion.conditional import ConditionalDiffusion
from forerun.worldmodels.diffusion.config import DiffusionConfig
from forerun.worldmodels.diffusion.dynamics import DiffusionDynamics
from forerun.worldmodels.diffusion.frame import Frame
from forerun.worldmodels.diffusion.noise_schedule import NoiseSchedule, NoiseScheduleConfig
from forerun.worldmodels.diffusion.one_step import CloningProposal, OneStepEnsemble
from forerun.worldmodels.diffusion.sampler import DiffusionSampler, SamplerConfig
from forerun.worldmodels.diffusion.value import PlanValue, StateValue

KINDS = [
    ("cosine", "epsilon"),
    ("cosine", "sample"),
    ("cosine", "v_prediction"),
    ("flow", "epsilon"),
    ("flow", "sample"),
    ("flow", "velocity"),
]
BOUNDS = ActionBounds.symmetric(2, 3.0)
TINY = DenoiserConfig(width=16, depth=1, num_heads=2, head_dim=8)


def schedule(kind="cosine", prediction="sample", levels=32):
    return NoiseSchedule(NoiseScheduleConfig(kind=kind, prediction_type=prediction, num_train_timesteps=levels))


def gaussian_network(noise, mean, std):
    """Return the exact network for data that is Gaussian: the posterior mean, in terms of what is predicted."""

    def guess(noisy, share):
        level = round(float(share) * noise.config.num_train_timesteps)
        a, s = noise.signal[level], noise.noise[level]
        clean = mean + std**2 * a * (noisy - a * mean) / (a**2 * std**2 + s**2)
        epsilon = (noisy - a * clean) / s
        levels = torch.full((len(noisy),), level)
        return noise.target(clean, epsilon, levels)

    return guess


def test_the_cosine_schedule_is_nichol_and_dhariwals_and_ends_clean():
    noise = schedule(levels=50)
    assert float(noise.alphas_cumprod[0]) == 1.0
    assert noise.signal.square().add(noise.noise.square()).tolist() == pytest.approx([1.0] * 51)

    def kept(t):
        return math.cos((t / 50 + 0.008) / 1.008 * math.pi / 2) ** 2

    for level in (1, 7, 30, 49):
        assert float(noise.alphas_cumprod[level]) == pytest.approx(kept(level) / kept(0), rel=1e-4)
    assert 0 < float(noise.alphas_cumprod[50]) < 1e-4
    assert bool((noise.signal[1:] < noise.signal[:-1]).all())


def test_a_flow_goes_straight_from_noise_to_data():
    noise = schedule("flow", "velocity", levels=4)
    assert noise.signal.tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert noise.noise.tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize(("kind", "prediction"), KINDS)
def test_the_clean_sample_comes_back_from_every_kind_of_guess(kind, prediction):
    noise = schedule(kind, prediction)
    clean, epsilon = torch.randn(2, 5, 3, generator=keyed_generator(0))
    for level in (1, 9, 31):
        levels = torch.full((5,), level)
        noisy = noise.noised(clean, epsilon, levels)
        assert torch.allclose(noise.clean(noisy, noise.target(clean, epsilon, levels), level), clean, atol=1e-3)


def test_levels_of_few_steps_begin_at_the_noisy_end_and_end_clean():
    noise = schedule(levels=32)
    assert noise.inference_levels(4) == [32, 24, 16, 8, 0]
    assert noise.inference_levels(1) == [32, 0]
    assert noise.inference_levels(32) == list(range(32, -1, -1))
    assert noise.inference_levels(8, first=0.5) == [16, 12, 8, 4, 0]
    for steps in (0, 33):
        with pytest.raises(ConfigError, match=rf"num_inference_steps={steps}: must lie in \[1, num_train_timesteps=32"):
            noise.inference_levels(steps)


@pytest.mark.parametrize(("kind", "prediction"), KINDS)
def test_samples_of_a_known_gaussian_have_its_mean_and_spread(kind, prediction):
    """8,000 draws with a fixed seed: the tolerances are 5 standard errors (false alarm below 1e-6) plus the bias of 100
    steps; the exact network is known, so only the sampler can be wrong."""
    noise = schedule(kind, prediction, levels=100)
    mean, std = 0.7, 0.4
    network = gaussian_network(noise, mean, std)
    etas = (0.0,) if kind == "flow" else (0.0, 1.0)
    for eta in etas:
        sampler = DiffusionSampler(SamplerConfig(num_inference_steps=100, eta=eta, clip=0.0), noise)
        drawn = sampler.sample(network, (8000, 1), generator=keyed_generator(1))
        assert float(drawn.mean()) == pytest.approx(mean, abs=5 * std / 8000**0.5 + 0.01), eta
        assert float(drawn.std()) == pytest.approx(std, abs=5 * std / 16000**0.5 + 0.02), eta


def test_one_step_of_eta_1_is_the_ddpm_posterior():
    noise = schedule(levels=10)
    sampler = DiffusionSampler(SamplerConfig(num_inference_steps=10, eta=1.0, clip=0.0), noise)
    target = torch.tensor([[0.3]])
    seen = []

    def network(noisy, share):
        seen.append(noisy.clone())
        return target

    generator = keyed_generator(3)
    sampler.sample(network, (1, 1), generator=generator)
    replay = keyed_generator(3)
    torch.randn(1, 1, generator=replay)
    acp = noise.alphas_cumprod
    for place, level in enumerate(range(10, 1, -1)):
        previous, kept = acp[level - 1], acp[level]
        alpha = kept / previous
        mean = (
            previous.sqrt() * (1 - alpha) / (1 - kept) * target
            + alpha.sqrt() * (1 - previous) / (1 - kept) * seen[place]
        )
        std = ((1 - previous) / (1 - kept) * (1 - alpha)).sqrt()
        assert torch.allclose(seen[place + 1], mean + std * torch.randn(1, 1, generator=replay), atol=2e-4)


def test_clean_guesses_are_clipped_at_every_step():
    sampler = DiffusionSampler(SamplerConfig(num_inference_steps=3, clip=0.5), schedule())
    drawn = sampler.sample(lambda noisy, share: noisy * 100, (50, 2), generator=keyed_generator(0))
    assert float(drawn.abs().max()) <= 0.5


def test_refining_with_little_noise_stays_near_and_with_much_forgets():
    noise = schedule(levels=100)
    network = gaussian_network(noise, 0.0, 1.0)
    sampler = DiffusionSampler(SamplerConfig(num_inference_steps=50, clip=0.0), noise)
    begin = torch.full((500, 1), 3.0)
    near, far = (
        sampler.refine(network, begin, first=first, generator=keyed_generator(0)).mean() for first in (0.05, 1.0)
    )
    assert float(near) == pytest.approx(3.0, abs=0.1)
    assert abs(float(far)) < 0.2


@pytest.mark.parametrize("wrong", [{"eta": 0.5}, {"num_inference_steps": 99}])
def test_samplers_that_do_not_fit_the_schedule_are_refused(wrong):
    with pytest.raises(ConfigError):
        DiffusionSampler(SamplerConfig(**wrong), schedule("flow", "velocity"))


@pytest.mark.parametrize("prediction", ["v_prediction", "velocity"])
def test_predictions_that_do_not_fit_the_kind_are_refused(prediction):
    other = {"v_prediction": "flow", "velocity": "cosine"}[prediction]
    with pytest.raises(ConfigError, match=r"prediction_type="):
        NoiseScheduleConfig(kind=other, prediction_type=prediction)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
@pytest.mark.parametrize("aligned_dim", [0, 3])
def test_denoisers_use_everything_they_are_given(kind, aligned_dim):
    config = DenoiserConfig(kind=kind, width=16, depth=2, num_heads=2, head_dim=4)
    torch.manual_seed(0)
    net = build_denoiser(config, horizon=5, channels=2, context_dim=4, aligned_dim=aligned_dim)
    noisy, context, level = torch.randn(3, 5, 2), torch.randn(3, 4), torch.tensor([0.3, 0.3, 0.3])
    aligned = torch.randn(3, 5, aligned_dim) if aligned_dim else None
    base = net(noisy, level, net.embed_known(context, aligned))
    assert base.shape == (3, 5, 2)
    one_level = net(noisy, level[:1], net.embed_known(context, aligned))
    assert torch.allclose(base, one_level, atol=1e-6)
    assert not torch.allclose(base, net(noisy + 1, level, net.embed_known(context, aligned)))
    assert not torch.allclose(base, net(noisy, level + 0.5, net.embed_known(context, aligned)))
    assert not torch.allclose(base, net(noisy, level, net.embed_known(context + 1, aligned)))
    if aligned is not None:
        moved = aligned.clone()
        moved[:, 4] += 1
        assert not torch.allclose(base, net(noisy, level, net.embed_known(context, moved)))


def test_a_transformer_tells_places_apart():
    torch.manual_seed(0)
    config = DenoiserConfig(kind="transformer", width=16, depth=1, num_heads=2, head_dim=4)
    net = build_denoiser(config, horizon=4, channels=1, context_dim=1)
    same = net(torch.ones(1, 4, 1), torch.zeros(1), net.embed_known(torch.ones(1, 1), None))[0, :, 0]
    assert same.unique().numel() == 4


def frame(history=2):
    generator = keyed_generator(0)
    return Frame.of_data(torch.randn(100, 3, generator=generator) * 2 + 1, BOUNDS, history=history)


def models():
    config = DiffusionConfig(denoiser=TINY, sampler=SamplerConfig(num_inference_steps=3))
    offsets = Normalizer(torch.zeros(4, 3), torch.ones(4, 3))
    torch.manual_seed(0)
    return (
        DiffusionProposal(config, frame(), horizon=4),
        DiffusionDynamics(config, frame(), offsets),
        OneStepEnsemble(frame(), Normalizer(torch.zeros(3), torch.ones(3)), width=8),
        CloningProposal(TINY, frame(), horizon=4),
    )


def history(envs=2, states=2):
    generator = keyed_generator(5)
    return History(
        states=torch.randn(envs, states, 3, generator=generator),
        actions=torch.randn(envs, states - 1, 2, generator=generator),
    )


@pytest.mark.parametrize("place", [0, 3])
def test_proposals_lie_in_the_box_differ_and_repeat(place):
    proposal = models()[place]
    drawn = proposal.propose(history(), 6, generator=keyed_generator(1))
    assert drawn.shape == (2, 6, 4, 2)
    assert float(drawn.abs().max()) <= 3.0
    assert torch.equal(drawn, proposal.propose(history(), 6, generator=keyed_generator(1)))
    assert not torch.equal(drawn, proposal.propose(history(), 6, generator=keyed_generator(2)))
    assert not torch.allclose(drawn[:, 0], drawn[:, 1])


def test_a_share_of_the_proposals_begins_from_the_warm_start():
    proposal = models()[0]
    proposal.options = ProposalOptions(warm_share=0.5, warm_level=0.1)
    starts = [torch.full((2, 4, 2), value) for value in (-2.0, 2.0)]
    low, high = (proposal.propose(history(), 6, generator=keyed_generator(1), warm_start=start) for start in starts)
    assert low.shape == (2, 6, 4, 2)
    assert torch.equal(low[:, :3], high[:, :3])
    assert not torch.allclose(low[:, 3:], high[:, 3:])


@pytest.mark.parametrize("place", [1, 2])
def test_dynamics_treat_rows_apart_and_start_from_the_present(place):
    dynamics = models()[place]
    seen = history()
    actions = torch.randn(2, 5, 4, 2, generator=keyed_generator(3))
    whole = dynamics.rollout(seen, actions, generator=keyed_generator(0))
    assert whole.shape == (2, 5, 4, 3)
    shifted = History(states=seen.states + torch.tensor([[[1.0]], [[0.0]]]), actions=seen.actions)
    moved = dynamics.rollout(shifted, actions, generator=keyed_generator(0))
    assert torch.allclose(whole[1], moved[1], atol=1e-5)
    assert not torch.allclose(whole[0], moved[0], atol=1e-3)


def test_a_short_plan_is_filled_up_and_a_long_one_refused():
    dynamics = models()[1]
    actions = torch.zeros(2, 5, 4, 2)
    assert dynamics.rollout(history(), actions[:, :, :2], generator=keyed_generator(0)).shape == (2, 5, 2, 3)
    with pytest.raises(ConfigError, match="8 actions for a dynamics of 4 steps"):
        dynamics.rollout(history(), actions.repeat(1, 1, 2, 1), generator=keyed_generator(0))


def test_contexts_of_short_histories_are_filled_as_windows_are():
    units = frame(history=3)
    present = torch.tensor([[1.0, 2.0, 3.0]])
    short = units.context(History.of_present(present, action_dim=2))
    window = Window(
        states=present[:, None].expand(-1, 3, -1),
        past_actions=torch.zeros(1, 2, 2),
        actions=torch.zeros(1, 4, 2),
        following=torch.zeros(1, 4, 3),
        is_real=torch.ones(1, 4, dtype=torch.bool),
    )
    assert torch.equal(short, units.window_context(window))
    long = History(states=torch.randn(1, 5, 3, generator=keyed_generator(0)), actions=torch.ones(1, 4, 2))
    last = History(states=long.states[:, -3:], actions=long.actions[:, -2:])
    assert torch.equal(units.context(long), units.context(last))


def test_a_focus_trains_the_levels_that_the_sampler_visits():
    """A share of 0.75 of 4,000 rows has one of two levels of 32; its standard error is below 0.008."""
    rows, seen = 4000, []
    for focus in (0.0, 0.75):
        config = DiffusionConfig(denoiser=TINY, sampler=SamplerConfig(num_inference_steps=2), focus=focus)
        model = ConditionalDiffusion(config, horizon=4, channels=1, context_dim=1)
        model.denoiser.forward = lambda noisy, level, known: seen.append(level) or noisy
        model.loss(
            torch.zeros(rows, 4, 1),
            context=torch.zeros(rows, 1),
            aligned=None,
            is_real=torch.ones(rows, 4, dtype=torch.bool),
            generator=keyed_generator(0),
        )
    any_level, focused = ((levels * 32).round().int() for levels in seen)
    assert set(any_level.tolist()) == set(range(1, 33))
    share = float(((focused == 32) | (focused == 16)).float().mean())
    assert share == pytest.approx(0.75 + 0.25 * 2 / 32, abs=0.04)
    with pytest.raises(ConfigError, match=r"focus=1\.5"):
        DiffusionConfig(focus=1.5)


def test_steps_beyond_an_episodes_end_do_not_count_in_a_loss():
    proposal = models()[0]

    def window(tail):
        actions = torch.zeros(2, 4, 2)
        actions[:, 2:] = tail
        is_real = torch.tensor([[True, True, False, False]] * 2)
        return Window(
            states=torch.zeros(2, 2, 3),
            past_actions=torch.zeros(2, 1, 2),
            actions=actions,
            following=torch.zeros(2, 4, 3),
            is_real=is_real,
        )

    # What an MLP sees of the padded steps is noise around other values, so only the target there must not matter.
    targets = proposal.diffusion
    losses = []
    for tail in (0.0, 2.5):
        clean = proposal.frame.actions(window(tail).actions)
        context = proposal.frame.window_context(window(tail))
        guess = torch.zeros_like(clean)
        targets.denoiser.forward = lambda noisy, level, known, guess=guess: guess
        losses.append(
            float(
                targets.loss(
                    clean, context=context, aligned=None, is_real=window(tail).is_real, generator=keyed_generator(0)
                )
            )
        )
    assert losses[0] == losses[1]


def test_values_are_in_units_of_the_return():
    returns = Normalizer(torch.tensor(50.0), torch.tensor(10.0))
    offsets = Normalizer(torch.zeros(4, 3), torch.ones(4, 3))
    torch.manual_seed(0)
    value, plan_value = StateValue(TINY, frame().states, returns), PlanValue(TINY, frame(), offsets, returns)
    for network in (value.network, plan_value.network):
        torch.nn.init.zeros_(network.outside.weight)
        torch.nn.init.constant_(network.outside.bias, 2.0)
    assert value(torch.zeros(2, 5, 3)).tolist() == [[70.0] * 5] * 2
    scores = plan_value.score(history(), torch.zeros(2, 6, 4, 3), torch.zeros(2, 6, 4, 2))
    assert scores.tolist() == [[70.0] * 6] * 2


def test_an_expectile_above_a_half_is_optimistic():
    returns = Normalizer(torch.tensor(0.0), torch.tensor(1.0))
    targets = torch.tensor([0.0, 0.0, 0.0, 1.0])

    for expectile in (0.5, 0.9):
        value = StateValue(TINY, frame().states, returns, expectile=expectile)
        torch.nn.init.zeros_(value.network.outside.weight)
        # The expectile e solves tau * (1 - e) = (1 - tau) * 3 e: there the loss is at its least.
        torch.nn.init.constant_(value.network.outside.bias, expectile / (expectile + 3 * (1 - expectile)))
        value.loss(torch.zeros(4, 3), targets).backward()
        assert float(value.network.outside.bias.grad) == pytest.approx(0.0, abs=1e-6)
