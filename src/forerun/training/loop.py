"""The training loop: batches in order, checkpoints that resume exactly."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forerun.core.errors import CheckpointError, DivergenceError
from forerun.training.devices import World, like, whole
from forerun.training.lowered import lowered
from forerun.training.optimizers import STATE_KEYS, OptimizerName, build_optimizers, optimizer_of
from forerun.training.schedule import warmup_cosine
from forerun.training.weight_average import WeightAverage

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How to optimise.

    Attributes:
        num_steps: Optimiser steps.
        learning_rate: Peak, reached after ``num_warmup`` steps.
        num_warmup: Steps of linear rise; a cosine falls from there.
        weight_decay: Decoupled, on matrices only.
        clip_norm: Largest norm of the gradient.
        checkpoint_every: Steps between checkpoints.
        optimizer: AdamW, or Muon for the matrices inside the layers.
        average_decay: Share of an exponential average of the weights that stays at each step; 0 keeps none.
        noise_seed: Root of the chance in the loss (dropout), drawn anew for each step; ``None`` where it has none.
        precision: Of the model's arithmetic; weights, gradients and moments keep the model's own format.
    """

    num_steps: int
    learning_rate: float = 1e-3
    num_warmup: int = 20
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    checkpoint_every: int = 50
    optimizer: OptimizerName = "adamw"
    average_decay: float = 0.0
    noise_seed: int | None = None
    precision: Literal["float32", "bfloat16"] = "float32"


class TrainingLoop(Generic[Batch]):
    """Runs optimiser steps over batches that are a function of the step, so that a resumed run sees the same data.

    Args:
        model: Trained in place; parameters that need no gradient are left alone and not saved.
        config: How to optimise.
        batch_at: Gives the batch of a step.
        loss: Gives the scalar loss of a batch.
        directory: For checkpoints; ``None`` keeps none.
        on_step: Told (step, loss, learning rate) after each step, before its checkpoint.
        learning_rate_fraction: Gives the fraction of the peak at a step; ``None``: a linear rise, then a half cosine to
            a twentieth.
        state: Tensors that a step changes though the optimiser doesn't, such as running statistics; in checkpoints.
        world: The processes that train the model together; ``None``: this one alone, on the CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        config: LoopConfig,
        *,
        batch_at: Callable[[int], Batch],
        loss: Callable[[Batch], Tensor],
        directory: Path | None = None,
        on_step: Callable[[int, float, float], None] = lambda step, loss, learning_rate: None,
        learning_rate_fraction: Callable[[int], float] | None = None,
        state: Mapping[str, Tensor] = MappingProxyType({}),
        world: World | None = None,
    ) -> None:
        self.config, self._state = config, state
        self._world = world or World(device=torch.device("cpu"))
        self._fraction = learning_rate_fraction or self._warmup_cosine
        self._model = model
        self._batch_at, self._loss, self._directory, self._on_step = batch_at, loss, directory, on_step
        self._named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._optimizers = build_optimizers(
            self._named,
            name=config.optimizer,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        decay = config.average_decay
        self._average = WeightAverage(dict(self._named), decay=decay) if decay > 0 else None

    def run(self) -> list[float]:
        """Train to the end, from the last checkpoint if there is one.

        With ``average_decay`` the model holds the average of its weights at the end.

        Returns:
            The loss of every step, earlier runs' included.

        Raises:
            CheckpointError: The checkpoint is of a run with other settings.
            DivergenceError: A loss or gradient is infinite or not a number; weights and checkpoint are those before
                that step.
        """
        losses = self._resume()
        for step in range(len(losses), self.config.num_steps):
            fraction = self._fraction(step)
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.config.learning_rate * fraction
            with self._lowered():
                with self._noise(step):
                    loss = self._loss(self._batch_at(step))
                loss_value = float(self._world.mean(loss.detach()))
                self._check_finite("loss", step, loss_value)
                loss.backward()
            norm = torch.nn.utils.clip_grad_norm_([parameter for _, parameter in self._named], self.config.clip_norm)
            self._check_finite("norm of the gradient", step, float(whole(norm)))
            for optimizer in self._optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if self._average is not None:
                self._average.update(step + 1)
            losses.append(loss_value)
            self._on_step(step, losses[-1], self.config.learning_rate * fraction)
            if (step + 1) % self.config.checkpoint_every == 0 or step + 1 == self.config.num_steps:
                self._save(losses)
        if self._average is not None:
            self._average.copy_to_parameters()
        return losses

    def num_done(self) -> int:
        """Return the steps of the checkpoint that :meth:`run` will go on from; 0 without one."""
        path = self._checkpoint()
        return 0 if path is None else len(json.loads(read_metadata(path)["losses"]))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights into the model for a while, where an average is kept."""
        with nullcontext() if self._average is None else self._average.in_place():
            yield

    def _lowered(self) -> AbstractContextManager[None]:
        if (
            self.config.precision == "float32" or self._world.size > 1
        ):  # shared parameters are gathered as they should be
            return nullcontext()
        return lowered(self._model, torch.bfloat16)

    @contextmanager
    def _noise(self, step: int) -> Iterator[None]:
        """Make the global generator a function of the step, and put it back."""
        seed = self.config.noise_seed
        if seed is None:
            yield
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(((seed << 32) + step) % 2**63)
            yield

    def _check_finite(self, name: str, step: int, value: float) -> None:
        if not math.isfinite(value):
            raise DivergenceError(
                f"the {name} at step {step} is {value}: training went out of bounds; take a learning rate below "
                f"{self.config.learning_rate:g}, or a longer warm-up than {self.config.num_warmup} steps"
            )

    def _warmup_cosine(self, step: int) -> float:
        return warmup_cosine(step, num_steps=self.config.num_steps, num_warmup=self.config.num_warmup)

    def _save(self, losses: Sequence[float]) -> None:
        """Write weights, moments and the loss curve; the file appears whole or not at all."""
        if self._directory is None:
            return
        tensors: dict[str, Tensor] = {f"state.{name}": tensor for name, tensor in self._state.items()}
        for name, parameter in self._named:
            tensors[f"weight.{name}"] = whole(parameter.detach())
            for key, value in optimizer_of(parameter, self._optimizers).state[parameter].items():
                tensors[f"{key}.{name}"] = whole(torch.as_tensor(value))
            if self._average is not None:
                tensors[f"average.{name}"] = self._average.tensors[name]
        if not self._world.is_writer:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        partial = self._directory / "checkpoint.partial"
        record = {"config": json.dumps(asdict(self.config)), "losses": json.dumps(list(losses))}
        save_file(tensors, partial, metadata=record)
        partial.rename(self._directory / "checkpoint.safetensors")

    def _checkpoint(self) -> Path | None:
        path = None if self._directory is None else self._directory / "checkpoint.safetensors"
        return path if path is not None and path.exists() else None

    def _resume(self) -> list[float]:
        path = self._checkpoint()
        if path is None:
            return []
        record = read_metadata(path)
        defaults = asdict(LoopConfig(num_steps=0))  # an option that is newer than the checkpoint had its default
        if defaults | json.loads(record["config"]) != asdict(self.config):
            raise CheckpointError(
                f"{path}: was made with {record['config']}, this run has {json.dumps(asdict(self.config))}; "
                "use the same settings to resume, or another directory to start afresh"
            )
        tensors = load_file(path)
        for name, parameter in self._named:
            parameter.data.copy_(like(tensors[f"weight.{name}"], parameter))
            optimizer_of(parameter, self._optimizers).state[parameter] = {
                key: like(tensors[f"{key}.{name}"], parameter) for key in STATE_KEYS if f"{key}.{name}" in tensors
            }
        for name, tensor in self._state.items():
            tensor.copy_(tensors[f"state.{name}"])
        if self._average is not None:
            self._average.load({name: tensors[f"average.{name}"] for name, _ in self._named})
        losses: list[float] = json.loads(record["losses"])
        return losses


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a safetensors file."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header.get("__metadata__", {})
