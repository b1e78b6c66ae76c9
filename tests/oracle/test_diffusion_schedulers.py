"""Our schedule and sampler against those of ``diffusers``, where it is installed."""

import pytest
import torch

from forerun.core.generator import keyed_generator
from forerun.worldmodels.diffusion.noise_schedule import NoiseSchedule, NoiseScheduleConfig
from forerun.worldmodels.diffusion.sampler import DiffusionSampler, SamplerConfig

diffusers = pytest.importorskip("diffusers")
LEVELS = 40


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [4, 10, 40])
def test_ddim_with_the_cosine_schedule_is_theirs(prediction, steps):
    theirs = diffusers.DDIMScheduler(
        num_train_timesteps=LEVELS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        clip_sample=True,
        clip_sample_range=1.5,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    schedule = NoiseSchedule(NoiseScheduleConfig(num_train_timesteps=LEVELS, prediction_type=prediction))
    assert torch.allclose(schedule.alphas_cumprod[1:], theirs.alphas_cumprod, atol=1e-6)
    weight = torch.randn(3, 3, generator=keyed_generator(0)) * 0.3

    def network(noisy, share):
        return torch.tanh(noisy @ weight) * (0.5 + share)

    theirs.set_timesteps(steps)
    noisy = torch.randn((5, 3), generator=keyed_generator(1))
    for timestep in theirs.timesteps:
        guess = network(noisy, (timestep + 1) / LEVELS)
        noisy = theirs.step(guess, timestep, noisy, eta=0.0, use_clipped_model_output=True).prev_sample
    sampler = DiffusionSampler(SamplerConfig(num_inference_steps=steps, clip=1.5), schedule)
    ours = sampler.sample(network, (5, 3), generator=keyed_generator(1))
    assert torch.allclose(ours, noisy, atol=1e-4)
