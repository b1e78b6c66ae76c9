"""Encoder and predictor as programs that run without this package: of ``torch.export``, and as ONNX."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from forerun.core.atomic_files import check_new_folder, folder_in_the_making, write_json_file
from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError
from forerun.worldmodels.jepa.model import Jepa

ProgramFormat = Literal["torch", "onnx"]
FORMATS: Final[tuple[ProgramFormat, ...]] = ("torch", "onnx")
SUFFIXES: Final = {"torch": ".pt2", "onnx": ".onnx"}
RECORD_FILE: Final = "programs.json"
_EXAMPLE_BATCH: Final = 3
"""Any number above 1: torch.export takes 0 and 1 for constants."""


def export_model(model: Jepa, folder: Path, *, formats: Sequence[ProgramFormat] = ("torch",)) -> dict[str, Any]:
    """Write one program for the encoder, and one for the predictor for each number of frames that it can look back on.

    ``encoder`` takes ``pixels``, uint8 [N, height, width, 3], and gives embeddings [N, D]. ``predictor-T`` takes
    ``latents`` [N, T, D] and ``actions``, the raw block after each [N, T, A], and gives the next embedding [N, D]. N is
    free. ``torch.export.load(path).module()`` is a function of torch alone; ONNX files run in ``onnxruntime``.

    Args:
        model: On the CPU; its mode and weights are as before.
        folder: Must not exist, or be empty.
        formats: Which kinds of files.

    Returns:
        The record that is written beside the programs: their names, sizes, versions.

    Raises:
        ConfigError: There is no format, or an unknown one.
        MissingDependencyError: ONNX is asked for and ``onnxscript`` is not installed.
        CheckpointError: The folder is not empty, or can't be written.
    """
    if not formats or set(formats) - set(FORMATS):
        raise ConfigError(f"formats={list(formats)}: must be one or more of {', '.join(FORMATS)}")
    check_new_folder(folder)
    versions = {"torch": torch.__version__}
    if "onnx" in formats:
        for package in ("onnx", "onnxscript"):
            versions[package] = import_optional(package, extra="export", purpose="writing ONNX").__version__
    config = model.config
    size, history = config.encoder.image_size, config.predictor.history
    predictors = [f"predictor-{num_frames}" for num_frames in range(1, history + 1)]
    was_training = model.training
    model.eval()
    with folder_in_the_making(folder) as partial:
        frames = torch.zeros(_EXAMPLE_BATCH, size, size, 3, dtype=torch.uint8)
        _write(_Encode(model), {"pixels": frames}, partial / "encoder", formats)
        for num_frames, name in enumerate(predictors, start=1):
            inputs = {
                "latents": torch.zeros(_EXAMPLE_BATCH, num_frames, config.latent_dim),
                "actions": torch.zeros(_EXAMPLE_BATCH, num_frames, model.action_dim),
            }
            _write(_Predict(model), inputs, partial / name, formats)
        record = {
            "encoder": "encoder",
            "predictors": predictors,
            "suffixes": [SUFFIXES[name] for name in formats],
            "image_size": size,
            "latent_dim": config.latent_dim,
            "action_dim": model.action_dim,
            "versions": versions,
        }
        write_json_file(partial / RECORD_FILE, record)
    model.train(was_training)
    return record


class _Encode(nn.Module):
    def __init__(self, model: Jepa) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: UInt8[Tensor, "N height width 3"]) -> Float[Tensor, "N D"]:
        return self.model.encode(pixels)


class _Predict(nn.Module):
    def __init__(self, model: Jepa) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Float[Tensor, "N T D"], actions: Float[Tensor, "N T A"]) -> Float[Tensor, "N D"]:
        return self.model.predict(latents, self.model.standardised(actions))[:, -1]


class _Saves(Protocol):
    def __call__(self, program: torch.export.ExportedProgram, path: str) -> None: ...


def _write(module: nn.Module, inputs: dict[str, Tensor], stem: Path, formats: Sequence[ProgramFormat]) -> None:
    """Write a module's program, the number of rows of its inputs left free."""
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(
            module.eval(), tuple(inputs.values()), dynamic_shapes=tuple({0: batch} for _ in inputs)
        )
    if "torch" in formats:
        cast(_Saves, torch.export.save)(program, f"{stem}{SUFFIXES['torch']}")
    if "onnx" in formats:
        found = torch.onnx.export(
            program, dynamo=True, input_names=list(inputs), output_names=["embeddings"], verbose=False
        )
        assert found is not None
        found.save(f"{stem}{SUFFIXES['onnx']}", external_data=False)
