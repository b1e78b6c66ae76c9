"""SIGReg: the fast way, the formula and the definition agree; it measures what it should; processes share a batch."""

import math

import pytest
import torch
from simulated import sigreg_process

from forerun.core.errors import ConfigError
from forerun.worldmodels.jepa import sigreg as module
from forerun.worldmodels.jepa.sigreg import (
    SigRegConfig,
    draw_directions,
    eager_statistic,
    expected_statistic,
    sigreg,
    sigreg_statistic,
    subspace_directions,
)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def statistic_by_definition(column, config):
    """The integral of one direction, number by number."""
    spacing = config.max_t / (config.num_knots - 1)
    total = 0.0
    for k in range(config.num_knots):
        t = k * spacing
        real = sum(math.cos(t * h) for h in column) / len(column)
        imaginary = sum(math.sin(t * h) for h in column) / len(column)
        weight = spacing * (1 if k in (0, config.num_knots - 1) else 2) * math.exp(-(t**2) / 2)
        total += weight * ((real - math.exp(-(t**2) / 2)) ** 2 + imaginary**2)
    return total * len(column)


def test_all_three_ways_agree():
    config = SigRegConfig(num_knots=17)
    projections = normal(2, 7, 3) * 1.7 + 0.3
    wanted = sum(
        statistic_by_definition(projections[step, :, column].tolist(), config)
        for step in range(2)
        for column in range(3)
    )
    assert float(eager_statistic(projections, config)) == pytest.approx(wanted / 6, rel=1e-12)
    assert float(sigreg_statistic(projections, config)) == pytest.approx(wanted / 6, rel=1e-12)


@pytest.mark.parametrize("scaling", ["published", "batch_invariant"])
@pytest.mark.parametrize("block", [1, 100, 1 << 15])
def test_the_gradient_in_closed_form_is_autograds(monkeypatch, scaling, block):
    monkeypatch.setattr(module, "_BLOCK_NUMBERS", block)
    config = SigRegConfig(num_knots=9, scaling=scaling)
    first, second = (normal(2, 5, 13).mul(1.3).requires_grad_() for _ in range(2))
    (1.7 * sigreg_statistic(first, config)).backward()
    (1.7 * eager_statistic(second, config)).backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-11, atol=1e-13)


def test_scaling_with_the_batch():
    projections = normal(1, 64, 5)
    twice = torch.cat([projections, projections], dim=1)
    published, invariant = SigRegConfig(), SigRegConfig(scaling="batch_invariant")
    assert float(sigreg_statistic(twice, published)) == pytest.approx(
        2 * float(sigreg_statistic(projections, published))
    )
    assert float(sigreg_statistic(twice, invariant)) == pytest.approx(float(sigreg_statistic(projections, invariant)))
    at_reference = normal(1, 128, 5)
    assert float(sigreg_statistic(at_reference, invariant)) == float(sigreg_statistic(at_reference, published))


@pytest.mark.statistical
def test_mean_over_gaussian_batches_is_the_expectation():
    config = SigRegConfig()
    values = torch.stack([sigreg_statistic(part, config) for part in normal(1, 32, 12_000).split(200, dim=2)])
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - expected_statistic(config)) < 6 * error  # false alarm: 1.3e-7 (t, 59 degrees)


@pytest.mark.parametrize(
    "disturb",
    [lambda z: 0 * z, lambda z: 0.5 * z, lambda z: z + 1, lambda z: z[..., :1].expand_as(z)],
    ids=["collapsed", "narrow", "shifted", "one direction"],
)
def test_what_is_not_an_isotropic_gaussian_costs_more(disturb):
    config = SigRegConfig(num_projections=64)
    latents = normal(1, 256, 8, dtype=torch.float32)

    def cost(z):
        return float(sigreg(z, config, generator=torch.Generator().manual_seed(0)))

    assert cost(disturb(latents)) > 3 * cost(latents)


def test_directions_come_from_the_generator_alone():
    state = torch.get_rng_state()
    first, second = (draw_directions(5, 7, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(7))
    generator = torch.Generator().manual_seed(1)
    assert not torch.equal(draw_directions(5, 7, generator=generator), draw_directions(5, 7, generator=generator))


def test_directions_stay_within_their_part_of_the_space():
    config = SigRegConfig(num_projections=30, num_subspaces=3)
    directions = subspace_directions(8, config, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(30))
    parts = [directions[:, place::3] for place in range(3)]
    assert [int(torch.linalg.matrix_rank(part, rtol=1e-4)) for part in parts] == [3, 3, 2]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        torch.testing.assert_close(parts[first].T @ parts[second], torch.zeros(10, 10), rtol=0, atol=1e-5)
    again = subspace_directions(8, config, generator=torch.Generator().manual_seed(2))
    assert not torch.equal(again, directions)
    both = torch.cat([parts[0], again[:, ::3]], dim=1)
    assert int(torch.linalg.matrix_rank(both, rtol=1e-4)) == 3  # other directions, the same part
    with pytest.raises(ConfigError, match="num_subspaces=9"):
        subspace_directions(8, SigRegConfig(num_subspaces=9), generator=torch.Generator())


def test_parts_may_have_anything_to_do_with_each_other():
    config = SigRegConfig(num_projections=256, num_subspaces=2)
    basis = module._random_basis(8, 0)
    half = normal(1, 512, 4, dtype=torch.float32)
    copied = torch.cat([half, half], dim=-1) @ basis.T  # the second part is the first one again

    def cost(latents, config):
        return float(sigreg(latents, config, generator=torch.Generator().manual_seed(0)))

    independent = normal(1, 512, 8, dtype=torch.float32)
    assert cost(copied, config) < 1.5 * cost(independent, config)
    assert cost(copied, SigRegConfig(num_projections=256)) > 5 * cost(independent, config)
    assert cost(0 * copied, config) > 30 * cost(independent, config)  # collapse is seen all the same


def test_autocast_does_not_reach_in():
    latents = normal(2, 16, 4, dtype=torch.float32)
    plain = sigreg(latents, SigRegConfig(num_projections=8), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sigreg(latents, SigRegConfig(num_projections=8), generator=torch.Generator().manual_seed(0))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)


@pytest.mark.slow
def test_two_processes_with_half_the_batch_each_are_one_with_all_of_it(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    arguments = (2, str(tmp_path / "meet"), str(tmp_path / "out"))
    processes = [context.Process(target=sigreg_process.run, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
    assert [process.exitcode for process in processes] == [0, 0]
    layer = sigreg_process.encoder()
    value = sigreg_statistic(layer(sigreg_process.inputs()), sigreg_process.CONFIG)
    value.backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"out-{rank}", weights_only=True)
        assert float(found["value"]) == pytest.approx(float(value.detach()), rel=1e-13)
        torch.testing.assert_close(found["weight"], layer.weight.grad, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(found["bias"], layer.bias.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    "options",
    [
        {"num_subspaces": 0},
        {"num_subspaces": 2000},
        {"num_projections": 0},
        {"num_knots": 1},
        {"max_t": 0.0},
        {"max_t": math.inf},
        {"scaling": "sum"},
    ],
)
def test_refusals(options):
    with pytest.raises(ConfigError, match=r"^sigreg\.\w+="):
        SigRegConfig(**options)
