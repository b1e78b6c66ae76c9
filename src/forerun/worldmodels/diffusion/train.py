"""Learning the models of D-MPC from recorded control: each a network, an optimiser and a run of its own."""

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor, nn

from forerun.core.control import ActionBounds
from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator
from forerun.data.normalizer import Normalizer, check_action_range
from forerun.data.trajectories import Trajectories
from forerun.data.windows import WindowSource, discounted_returns
from forerun.envs.control_goals import Arrival
from forerun.nn.first_weights import seeded_weights
from forerun.training.loop import LoopConfig, TrainingLoop
from forerun.training.trackers import Tracker, open_trackers
from forerun.worldmodels.diffusion.action_proposal import DiffusionProposal
from forerun.worldmodels.diffusion.config import DmpcConfig
from forerun.worldmodels.diffusion.dynamics import DiffusionDynamics, offset_normalizer
from forerun.worldmodels.diffusion.frame import Frame
from forerun.worldmodels.diffusion.joint import JointDiffusion
from forerun.worldmodels.diffusion.one_step import CloningProposal, OneStepEnsemble
from forerun.worldmodels.diffusion.plan_prior import PlanPrior
from forerun.worldmodels.diffusion.stitching import Stitching, follow
from forerun.worldmodels.diffusion.value import PlanValue, StateValue

Model = TypeVar("Model", DiffusionProposal, DiffusionDynamics, JointDiffusion, OneStepEnsemble, CloningProposal)

Report = Callable[[str, int, int, str], None]
"""Told (what is trained, steps done, steps in all, its loss)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DmpcTrainingConfig:
    """How the models are trained.

    Attributes:
        num_steps: Optimiser steps of each model.
        batch_size: Windows of a step.
        learning_rate: Peak; a cosine falls to a twentieth of it.
        average_decay: Of the average of the weights that is kept as the model.
        seed: Of weights, batches and noise.
    """

    num_steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 1e-3
    average_decay: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise ConfigError(
                f"num_steps={self.num_steps}, batch_size={self.batch_size}, learning_rate={self.learning_rate}: "
                "counts must be at least 1, the rate above 0"
            )


class ModelTrainer:
    """Builds and trains models on one recording.

    Args:
        trajectories: The recording.
        bounds: The box of actions.
        config: Shapes.
        training: How to train.
        arrival: What arrives where, in a task with a goal in its state, for a state value that stitches.
        directory: For checkpoints and curves, one folder a model; ``None`` keeps none.
        report: Told of progress.

    Raises:
        TrajectoryError: Actions lie outside their box, or no episode is long enough.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        bounds: ActionBounds,
        *,
        config: DmpcConfig,
        training: DmpcTrainingConfig,
        arrival: Arrival | None = None,
        directory: Path | None = None,
        report: Report = lambda name, done, total, detail: None,
    ) -> None:
        self.trajectories, self.config, self._training = trajectories, config, training
        self._arrival, self._directory, self._report = arrival, directory, report
        self.source = WindowSource(trajectories, history=config.history, horizon=config.horizon)
        check_action_range(self.source.all_actions, low=bounds.low, high=bounds.high, names=trajectories.action_names)
        self._frame = Frame.of_data(self.source.all_states, bounds, history=config.history, waves=config.waves)
        self._offsets = offset_normalizer(self.source, keyed_generator(training.seed, "offsets"))
        self._returns = discounted_returns(trajectories, discount=config.discount)[self.source.rows]
        self._return_units = Normalizer.of_mean_and_std(self._returns)

    def proposal(self) -> DiffusionProposal:
        """Train the action proposal."""
        config, prior = self.config, None
        if config.wide_share:
            generator = keyed_generator(self._training.seed, "plans")
            prior = PlanPrior.of_data(self.source, self._frame.actions, generator)

        def build() -> DiffusionProposal:
            return DiffusionProposal(
                config.proposal, self._frame, horizon=config.horizon, prior=prior, wide_share=config.wide_share
            )

        return self._fitted("proposal", build)

    def dynamics(self) -> DiffusionDynamics:
        """Train the multi-step dynamics."""
        return self._fitted("dynamics", lambda: DiffusionDynamics(self.config.dynamics, self._frame, self._offsets))

    def one_step(self) -> OneStepEnsemble:
        """Train the one-step dynamics of the baselines."""
        window = self.source.take(torch.arange(len(self.source)))
        change = Normalizer.of_mean_and_std(window.following[:, 0] - window.states[:, -1])
        return self._fitted("one-step", lambda: OneStepEnsemble(self._frame, change, width=self.config.value.width))

    def cloning(self) -> CloningProposal:
        """Train the baselines' behaviour cloning."""
        return self._fitted(
            "cloning",
            lambda: CloningProposal(self.config.proposal.denoiser, self._frame, horizon=self.config.horizon),
        )

    def joint(self) -> JointDiffusion:
        """Train the baseline that draws actions and states together, in as many steps as the proposal draws plans."""
        config = self.config.dynamics
        num_steps = self.config.proposal.sampler.num_inference_steps
        config = replace(config, sampler=replace(config.sampler, num_inference_steps=num_steps), focus=0.0)
        return self._fitted("joint", lambda: JointDiffusion(config, self._frame, self._offsets))

    def plan_value(self) -> PlanValue:
        """Train the value of a plan with its future."""
        with seeded_weights(self._training.seed, "plan-value"):
            model = PlanValue(self.config.value, self._frame, self._offsets, self._return_units)

        def loss(step: int) -> Tensor:
            rows = self._rows("plan-value", step)
            return model.loss(self.source.take(rows), self._returns[rows])

        self._run("plan-value", model, loss)
        return model

    def state_value(self) -> StateValue:
        """Train the value of a state."""
        name, options = "state-value", self.config.state_value
        with seeded_weights(self._training.seed, name):
            model = StateValue(
                self.config.value,
                self._frame.states,
                self._return_units,
                expectile=options.expectile,
                waves=options.waves,
            )
        if options.targets == "stitched":
            self._stitch(name, model)
            return model

        def loss(step: int) -> Tensor:
            rows = self._rows(name, step)
            return model.loss(self.source.all_states[self.source.rows[rows]], self._returns[rows])

        self._run(name, model, loss)
        return model

    def _stitch(self, name: str, model: StateValue) -> None:
        """Train a value on what it says itself of the ends of stretches, through a copy that follows it slowly."""
        options = self.config.state_value
        stitching = Stitching(self.trajectories, options, discount=self.config.discount, arrival=self._arrival)
        slow = copy.deepcopy(model).requires_grad_(False)

        def loss(step: int) -> Tensor:
            follow(slow, model, rate=options.follow_rate)
            generator = keyed_generator(self._training.seed, name, "goals", step)
            stretch = stitching.draw(self._rows(name, step), generator)
            return model.loss(stretch.states, stitching.worth(stretch, slow))

        self._run(name, model, loss, state=slow.state_dict())

    def tune(self, model: DiffusionDynamics | JointDiffusion, *, name: str) -> None:
        """Train a model of what follows further, in place, on this recording; its units stay those it was made with.

        Args:
            model: Tuned.
            name: Of the run and its chance.
        """
        self._run_on_windows(name, model)

    def _fitted(self, name: str, build: Callable[[], Model]) -> Model:
        with seeded_weights(self._training.seed, name):
            model = build()
        self._run_on_windows(name, model)
        return model

    def _run_on_windows(
        self,
        name: str,
        model: DiffusionProposal | DiffusionDynamics | JointDiffusion | OneStepEnsemble | CloningProposal,
    ) -> None:
        def loss(step: int) -> Tensor:
            window = self.source.take(self._rows(name, step))
            return model.loss(window, generator=keyed_generator(self._training.seed, name, "noise", step))

        self._run(name, model, loss)

    def _rows(self, name: str, step: int) -> Tensor:
        """Return the windows of a step: a function of the seed, the model's name and the step."""
        generator = keyed_generator(self._training.seed, name, "windows", step)
        return torch.randint(len(self.source), (self._training.batch_size,), generator=generator)

    def _run(
        self,
        name: str,
        model: nn.Module,
        loss: Callable[[int], Tensor],
        *,
        state: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        training = self._training
        config = LoopConfig(
            num_steps=training.num_steps,
            learning_rate=training.learning_rate,
            num_warmup=min(100, 1 + training.num_steps // 10),
            weight_decay=1e-4,
            clip_norm=5.0,
            checkpoint_every=200,
            average_decay=training.average_decay,
        )
        folder = None if self._directory is None else self._directory / name
        trackers: list[Tracker] = []

        def on_step(step: int, value: float, rate: float) -> None:
            for tracker in trackers:
                tracker.add({"train/loss": value, "train/learning_rate": rate}, step + 1)
            self._report(name, step + 1, training.num_steps, f"loss {value:.4f}")

        loop = TrainingLoop(
            model, config, batch_at=lambda step: step, loss=loss, directory=folder, on_step=on_step, state=state
        )
        with ExitStack() as stack:
            if folder is not None:
                opened = open_trackers(folder, asdict(training), first_step=loop.num_done() + 1)
                trackers += [stack.enter_context(closing(tracker)) for tracker in opened]
            loop.run()
        model.eval()
