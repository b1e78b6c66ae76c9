"""Sample, score, rank: rounds that the clock may end, and several futures for a plan."""

import pytest
import torch

from forerun.core.control import ActionBounds, History
from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator
from forerun.planning.mixed_proposal import MixedProposal
from forerun.planning.objective import Constraint, FinalReward
from forerun.planning.random_shooting import UniformProposal
from forerun.planning.ssr import Ssr, SsrConfig

BOUNDS = ActionBounds.symmetric(1)
HISTORY = History.of_present(torch.zeros(2, 1), action_dim=1)


class Near(UniformProposal):
    """Uniform, and near given sequences: a tenth of the way to a new draw for each unit of the level."""

    def refine(self, history, actions, *, level, generator):
        return actions + 0.1 * level * torch.randn(actions.shape, generator=generator)


class Sum:
    """The state is the sum of the actions so far, times a factor; counts what it was asked to imagine."""

    action_dim = 1

    def __init__(self, factor=1.0):
        self.factor, self.num_asked = factor, 0

    def rollout(self, history, actions, *, generator):
        self.num_asked += actions.shape[1]
        return self.factor * actions.cumsum(dim=2)


class Gamble:
    """A positive first action gains 1.2 in the mean and is a gamble, a negative one gains 1 for certain."""

    action_dim = 1

    def rollout(self, history, actions, *, generator):
        first = actions[:, :, 0]
        luck = torch.randn(first.shape, generator=generator)
        gain = torch.where(first > 0, 1.2 + 3.0 * luck, torch.ones_like(first))
        return gain[:, :, None].expand(-1, -1, actions.shape[2], -1)


def plan(is_late=lambda: False, objective=None, **options):
    planner = Ssr(
        SsrConfig(**options),
        proposal=UniformProposal(BOUNDS, horizon=2),
        dynamics=Gamble(),
        objective=objective or FinalReward(lambda states: states[..., 0]),
        bounds=BOUNDS,
    )
    return planner.plan(HISTORY, generator=keyed_generator(0), is_late=is_late)


def test_one_future_falls_for_luck_and_aversion_to_risk_does_not():
    lucky = plan(num_samples=32)
    assert bool((lucky.actions[:, 0] > 0).all())
    assert bool((lucky.scores > 3).all())
    careful = plan(num_samples=32, num_futures=64, risk_aversion=1.0)
    assert bool((careful.actions[:, 0] < 0).all())
    assert careful.scores.tolist() == pytest.approx([1.0, 1.0])
    # Without aversion the mean decides: 64 futures of standard deviation 3 put every gamble within 5 errors of 1.2.
    neutral = plan(num_samples=32, num_futures=64)
    assert bool((neutral.scores < 1.2 + 5 * 3 / 8).all())


def test_the_mean_of_the_worst_futures_is_what_a_careful_plan_is_worth():
    """The worst quarter of 400 draws of a gamble has a mean of 1.2 - 1.27 * 3 = -2.6, with a standard error of 0.2."""
    careful = plan(num_samples=32, num_futures=400, worst_share=0.25)
    assert bool((careful.actions[:, 0] < 0).all())
    assert careful.scores.tolist() == pytest.approx([1.0, 1.0])
    gambles = careful.future_scores[careful.future_actions[:, :, 0, 0] > 0]
    assert gambles.tolist() == pytest.approx([-2.6] * len(gambles), abs=1.0)


def test_several_futures_keep_the_shapes_of_one():
    one, several = plan(num_samples=6), plan(num_samples=6, num_futures=3)
    for name in ("actions", "states", "futures", "future_actions", "future_scores"):
        assert getattr(one, name).shape == getattr(several, name).shape, name


def test_one_future_that_breaks_a_constraint_decides():
    limit = Constraint(lambda states, actions: -4.0 - states[..., 0], name="no great loss")
    wanted = FinalReward(lambda states: 100 * (states[..., 0] != 1.0).float()).subject_to(limit)
    found = plan(num_samples=16, num_futures=400, objective=wanted)
    assert bool((found.actions[:, 0] < 0).all()), "a gamble passes 400 futures once in 10 million"


def test_rounds_are_parts_of_the_samples_and_the_clock_ends_them():
    asked = []
    whole = plan(num_samples=10, num_rounds=3)
    assert (whole.num_iterations, whole.num_candidates) == (3, 10)
    cut = plan(num_samples=10, num_rounds=3, is_late=lambda: asked.append(1) is None)
    assert (cut.num_iterations, cut.num_candidates) == (1, 3)
    assert torch.equal(cut.future_actions, whole.future_actions[:, :3])


def solve(*, is_late=lambda: False, preview=None, dynamics=None, proposal=None, **options):
    planner = Ssr(
        SsrConfig(**options),
        proposal=proposal or Near(BOUNDS, horizon=2),
        dynamics=dynamics or Sum(),
        objective=FinalReward(lambda states: states[..., 0]),
        bounds=BOUNDS,
        preview=preview,
    )
    return planner.plan(HISTORY, generator=keyed_generator(0), is_late=is_late)


def test_refinement_goes_on_from_the_best_and_never_loses_them():
    plain = solve(num_samples=16)
    refined = solve(num_samples=16, num_refinements=3, num_elites=4, refine_level=1.0)
    assert bool((refined.scores > plain.scores).all())
    assert torch.equal(refined.future_actions[:, :16], plain.future_actions)
    assert (refined.num_iterations, refined.num_candidates, refined.is_complete) == (4, 64, True)
    assert float(refined.actions.abs().max()) <= 1.0
    last, elites = refined.future_actions[:, 16:32], plain.future_actions[:, plain.future_scores[0].topk(4).indices]
    gaps = (last[0, :, None] - elites[0][None]).abs().amax(dim=(-1, -2)).amin(dim=1)
    assert float(gaps.max()) < 0.6, "six standard deviations"


def test_the_clock_ends_refinement():
    cut = solve(num_samples=16, num_refinements=3, is_late=lambda: True)
    assert (cut.num_iterations, cut.is_complete) == (1, False)


def test_a_preview_passes_on_only_the_best():
    dynamics, preview = Sum(), Sum()
    found = solve(num_samples=4, num_previewed=64, preview=preview, dynamics=dynamics)
    assert (dynamics.num_asked, preview.num_asked) == (4, 64)
    assert torch.equal(found.actions, solve(num_samples=64).actions)
    misled = solve(num_samples=4, num_previewed=64, preview=Sum(-1.0))
    assert bool((misled.scores < 0).all())


def test_previews_and_rounds_share_out_evenly():
    dynamics, preview = Sum(), Sum()
    solve(num_samples=5, num_rounds=2, num_previewed=15, preview=preview, dynamics=dynamics)
    assert (dynamics.num_asked, preview.num_asked) == (5, 15)


def test_what_an_option_needs_must_be_there():
    with pytest.raises(ConfigError, match="num_previewed=64: needs a cheap dynamics"):
        solve(num_samples=4, num_previewed=64)
    with pytest.raises(ConfigError, match="UniformProposal can't draw near given sequences"):
        solve(proposal=UniformProposal(BOUNDS, horizon=2), num_refinements=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_samples": 0},
        {"num_rounds": 65},
        {"num_futures": 0},
        {"risk_aversion": -1.0},
        {"worst_share": 0.0},
        {"num_previewed": 63},
        {"num_refinements": -1},
        {"num_elites": 0},
        {"refine_level": 0.0},
    ],
)
def test_wrong_options(wrong):
    with pytest.raises(ConfigError):
        SsrConfig(**wrong)


def test_a_share_of_the_plans_knows_nothing_and_a_single_one_is_likely():
    likely = Near(ActionBounds(low=torch.tensor([2.0]), high=torch.tensor([3.0])), horizon=2)
    mixed = MixedProposal(likely, UniformProposal(BOUNDS, horizon=2), share=0.5)
    last = torch.full((2, 2, 1), 0.25)
    drawn = mixed.propose(HISTORY, 6, generator=keyed_generator(0), warm_start=last)
    assert torch.equal(drawn[:, 0], last)
    assert bool((drawn[:, 1:3] >= 2).all())
    assert bool((drawn[:, 3:].abs() <= 1).all())
    assert not torch.equal(drawn[:, 3], last)
    alone = mixed.propose(HISTORY, 1, generator=keyed_generator(0))
    assert bool((alone >= 2).all()), "a single plan is a likely one"
    near = mixed.refine(HISTORY, drawn, level=1.0, generator=keyed_generator(1))
    assert torch.equal(near, likely.refine(HISTORY, drawn, level=1.0, generator=keyed_generator(1)))


def test_proposals_of_different_sizes_do_not_mix():
    with pytest.raises(ConfigError, match="sizes must be the same"):
        MixedProposal(Near(BOUNDS, horizon=2), UniformProposal(BOUNDS, horizon=3), share=0.5)
    with pytest.raises(ConfigError, match="share=1"):
        MixedProposal(Near(BOUNDS, horizon=2), UniformProposal(BOUNDS, horizon=2), share=1.0)
