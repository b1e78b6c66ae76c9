"""All models of a task together, in one folder: safetensors for weights and units, a manifest for the rest."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from forerun.core.atomic_files import folder_in_the_making, write_json_file
from forerun.core.config import config_from_record
from forerun.core.control import ActionBounds
from forerun.core.errors import CheckpointError, ConfigError, ForerunError
from forerun.data.normalizer import Normalizer
from forerun.worldmodels.diffusion.action_proposal import DiffusionProposal
from forerun.worldmodels.diffusion.config import DmpcConfig
from forerun.worldmodels.diffusion.dynamics import DiffusionDynamics
from forerun.worldmodels.diffusion.frame import Frame
from forerun.worldmodels.diffusion.one_step import CloningProposal, OneStepEnsemble
from forerun.worldmodels.diffusion.plan_prior import PlanPrior
from forerun.worldmodels.diffusion.train import ModelTrainer
from forerun.worldmodels.diffusion.value import PlanValue, StateValue

_FORMAT: Final = "forerun-dmpc-1"
_MANIFEST: Final = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelBundle:
    """The models that planning for one task needs, and the baselines.

    Attributes:
        config: Their shapes.
        task: Name of the task.
        state_names: Of the recording they learned from.
        action_names: Likewise.
        bounds: The box of actions.
        proposal: Action proposal.
        dynamics: Multi-step dynamics.
        plan_value: The paper's J.
        state_value: What the end of a horizon is worth.
        one_step: Baseline dynamics.
        cloning: Baseline proposal.
    """

    config: DmpcConfig
    task: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    bounds: ActionBounds
    proposal: DiffusionProposal
    dynamics: DiffusionDynamics
    plan_value: PlanValue
    state_value: StateValue
    one_step: OneStepEnsemble
    cloning: CloningProposal

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks by the names of their files."""
        return {
            "proposal": self.proposal,
            "dynamics": self.dynamics,
            "plan_value": self.plan_value,
            "state_value": self.state_value,
            "one_step": self.one_step,
            "cloning": self.cloning,
        }

    def save(self, folder: Path, *, record: Mapping[str, Any]) -> None:
        """Write everything to a new folder.

        Args:
            folder: Must not exist, or be empty.
            record: More to keep, as JSON types: training options, the data's digest.

        Raises:
            CheckpointError: It can't be written.
        """
        manifest = {
            "format": _FORMAT,
            "config": asdict(self.config),
            "task": self.task,
            "state_names": self.state_names,
            "action_names": self.action_names,
            "low": self.bounds.low.tolist(),
            "high": self.bounds.high.tolist(),
            "record": dict(record),
        }
        try:
            with folder_in_the_making(folder) as partial:
                for name, module in self.modules.items():
                    tensors = {key: value.contiguous().clone() for key, value in module.state_dict().items()}
                    save_file(tensors, partial / f"{name}.safetensors")
                write_json_file(partial / _MANIFEST, manifest)
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be written ({error}); name a new or empty folder") from error

    @classmethod
    def load(cls, folder: Path) -> "ModelBundle":
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: A file is missing, corrupt, or of another kind.
        """
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            if manifest.get("format") != _FORMAT:
                raise CheckpointError(f"{folder}: its format is {manifest.get('format')!r}, not {_FORMAT!r}")
            config = config_from_record(DmpcConfig, manifest["config"])
            bounds = ActionBounds(low=torch.tensor(manifest["low"]), high=torch.tensor(manifest["high"]))
            names = (tuple(manifest["state_names"]), tuple(manifest["action_names"]))
            bundle = cls._blank(config, manifest["task"], *names, bounds)
            for name, module in bundle.modules.items():
                module.load_state_dict(load_file(folder / f"{name}.safetensors"))
                module.eval()
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            if isinstance(error, ForerunError) and not isinstance(error, ConfigError):
                raise
            raise CheckpointError(
                f"{folder}: holds no models of D-MPC that can be read ({error}); make them with `forerun mpc train`"
            ) from error
        return bundle

    @classmethod
    def trained(cls, trainer: ModelTrainer, *, task: str, bounds: ActionBounds) -> "ModelBundle":
        """Train every model, one after the other.

        Args:
            trainer: Has the recording and the options.
            task: Name of the task.
            bounds: The box of actions.
        """
        return cls(
            config=trainer.config,
            task=task,
            state_names=trainer.trajectories.state_names,
            action_names=trainer.trajectories.action_names,
            bounds=bounds,
            proposal=trainer.proposal(),
            dynamics=trainer.dynamics(),
            plan_value=trainer.plan_value(),
            state_value=trainer.state_value(),
            one_step=trainer.one_step(),
            cloning=trainer.cloning(),
        )

    @classmethod
    def _blank(
        cls,
        config: DmpcConfig,
        task: str,
        state_names: tuple[str, ...],
        action_names: tuple[str, ...],
        bounds: ActionBounds,
    ) -> "ModelBundle":
        """Return models of the right shapes, to be filled from files."""
        frame = Frame.of_data(torch.zeros(1, len(state_names)), bounds, history=config.history, waves=config.waves)
        zeros = torch.zeros(config.horizon, len(state_names))
        offsets, returns = Normalizer(zeros, zeros + 1), Normalizer(torch.zeros(()), torch.ones(()))
        num_numbers = config.horizon * len(action_names)
        return cls(
            config=config,
            task=task,
            state_names=state_names,
            action_names=action_names,
            bounds=bounds,
            proposal=DiffusionProposal(
                config.proposal,
                frame,
                horizon=config.horizon,
                prior=PlanPrior.unknown(num_numbers) if config.wide_share else None,
                wide_share=config.wide_share,
            ),
            dynamics=DiffusionDynamics(config.dynamics, frame, offsets),
            plan_value=PlanValue(config.value, frame, offsets, returns),
            state_value=StateValue(config.value, frame.states, returns, waves=config.state_value.waves),
            one_step=OneStepEnsemble(frame, Normalizer(zeros[0], zeros[0] + 1), width=config.value.width),
            cloning=CloningProposal(config.proposal.denoiser, frame, horizon=config.horizon),
        )
