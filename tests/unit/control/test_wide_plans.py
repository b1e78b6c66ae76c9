"""Plans that begin from those of the data keep their spread over few denoising steps."""

import pytest
import torch

from forerun.core.control import ActionBounds, History
from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator
from forerun.data.normalizer import Normalizer
from forerun.models.denoiser import DenoiserConfig
from forerun.worldmodels.diffusion.action_proposal import DiffusionProposal, ProposalOptions
from forerun.worldmodels.diffusion.config import DiffusionConfig
from forerun.worldmodels.diffusion.frame import Frame
from forerun.worldmodels.diffusion.noise_schedule import NoiseSchedule, NoiseScheduleConfig
from forerun.worldmodels.diffusion.plan_prior import PlanPrior
from forerun.worldmodels.diffusion.sampler import DiffusionSampler, SamplerConfig

HISTORY = History.of_present(torch.zeros(2, 3), action_dim=1)


class Windows:
    """Stands in for a source of windows: plans of one direction, slow and fast."""

    def draw(self, count, generator):
        speeds = torch.randn(count, 1, 1, generator=generator)
        self.actions = 2.0 + 0.5 * speeds * torch.tensor([[[1.0], [2.0]]])
        return self

    def whole(self):
        return self


def proposal(prior=None, wide_share=0.0):
    units = Normalizer(torch.zeros(3), torch.ones(3))
    bounds = ActionBounds.symmetric(1)
    frame = Frame(units, Normalizer.of_range(bounds.low, bounds.high), history=1)
    config = DiffusionConfig(
        denoiser=DenoiserConfig(width=16, depth=1), sampler=SamplerConfig(num_inference_steps=2, clip=1.0)
    )
    torch.manual_seed(0)
    return DiffusionProposal(config, frame, horizon=2, prior=prior, wide_share=wide_share)


def test_the_prior_has_mean_and_covariance_of_the_plans():
    """16,384 plans and 20,000 draws with fixed seeds: tolerances are beyond 6 standard errors (chance below 1e-8)."""
    prior = PlanPrior.of_data(Windows(), Normalizer(torch.ones(1), torch.full((1,), 2.0)), keyed_generator(0))
    drawn = prior.draw(20_000, keyed_generator(1))
    assert drawn.mean(dim=0).tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    assert torch.cov(drawn.T).flatten().tolist() == pytest.approx([1 / 16, 2 / 16, 2 / 16, 4 / 16], abs=0.02)


def test_two_steps_from_noise_lose_spread_that_two_steps_from_the_data_keep():
    """Plans whose numbers go together, and the exact network for them: only the beginning differs.

    The data's spread is 0.5. 8,000 draws with a fixed seed; the standard error of a spread is below 0.005.
    """
    noise = NoiseSchedule(NoiseScheduleConfig(num_train_timesteps=32))
    direction = torch.full((16,), 0.5)

    def exact(noisy, share):
        level = round(float(share) * 32)
        a, s = noise.signal[level], noise.noise[level]
        # The posterior mean of x0 = direction * c with c normal, from noisy = a * x0 + s * epsilon.
        size = (noisy @ direction) * a / (s**2 + a**2 * direction.square().sum())
        return size[:, None] * direction

    sampler = DiffusionSampler(SamplerConfig(num_inference_steps=2, clip=0.0), noise)
    narrow = sampler.sample(exact, (8000, 16), generator=keyed_generator(0))
    plans = torch.randn(8000, 1, generator=keyed_generator(1)) * direction
    wide = sampler.refine(exact, plans, first=0.75, generator=keyed_generator(2))
    # Both by hand, from the exact network: it is linear in the noise.
    assert float(narrow.std(dim=0).mean()) == pytest.approx(0.20, abs=0.03)
    assert float(wide.std(dim=0).mean()) == pytest.approx(0.40, abs=0.03)


def test_a_share_of_the_plans_begins_from_the_prior():
    low, high = (
        proposal(PlanPrior(torch.full((2,), mean), 0.1 * torch.eye(2)), 0.5).propose(
            HISTORY, 6, generator=keyed_generator(1)
        )
        for mean in (-0.9, 0.9)
    )
    assert low.shape == (2, 6, 2, 1)
    assert torch.equal(low[:, :3], high[:, :3])
    assert not torch.allclose(low[:, 3:], high[:, 3:])
    assert float(low.abs().max()) <= 1.0


def test_without_a_prior_no_plan_can_begin_from_it():
    with pytest.raises(ConfigError, match="these models do not know the data's plans"):
        proposal(wide_share=0.5)
    with pytest.raises(ConfigError, match="these models do not know the data's plans"):
        proposal().with_options(ProposalOptions(wide_share=0.5))
    with pytest.raises(ConfigError, match="wide_share=2"):
        ProposalOptions(wide_share=2.0)
    with pytest.raises(ConfigError, match="wide_level=0"):
        ProposalOptions(wide_level=0.0)
