"""Weights, configuration and tokenizer out of a Hugging Face directory or hub name."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from forerun.core.errors import MissingDependencyError, ModelLoadError
from forerun.models.config import DecoderConfig
from forerun.models.fields import Fields
from forerun.models.layout import check_shapes
from forerun.models.tokenizer import Tokenizer, load_tokenizer_json

_FLOAT_TYPES = frozenset({"F32", "F16", "BF16"})
_HUB_FILES = ("*.json", "*.jinja", "model*.safetensors")  # not the second copy, "consolidated", that some hold
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


class SafetensorsTensors:
    """Reads decoder parameters out of safetensors shards; see :class:`forerun.models.layout.TensorReader`.

    A shard is opened for each read and closed after it, so no mapping of the files stays in the process's memory.
    """

    def __init__(self, directory: Path, config: DecoderConfig) -> None:
        self._source = str(directory)
        self._places: dict[str, tuple[Path, str]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        self.files = shard_files(directory)
        for file in self.files:
            for stored_name, shape in _stored_shapes(file).items():
                name = stored_name.removeprefix("model.")
                is_tied_copy = name == "lm_head.weight" and config.tie_embeddings
                if is_tied_copy or name.endswith("rotary_emb.inv_freq"):
                    continue
                self._places[name] = (file, stored_name)
                shapes[name] = shape
        check_shapes(self._source, shapes, config)

    def names(self) -> tuple[str, ...]:
        """Return the parameter names."""
        return tuple(self._places)

    def tensor(self, name: str) -> np.ndarray:
        """Read one parameter into a new float32 array."""
        if name not in self._places:
            raise ModelLoadError(f"{self._source}: no parameter {name!r}; names() lists those there are")
        file, stored_name = self._places[name]
        try:
            with safe_open(file, framework="pt") as shard:
                return shard.get_tensor(stored_name).to(torch.float32, copy=True).numpy()
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{file}: can't be read ({error}); download it again") from error


def shard_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a directory, each once.

    Raises:
        ModelLoadError: There are none, or one that the index names is missing.
    """
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ModelLoadError(
            f"{directory}: holds neither model.safetensors nor model.safetensors.index.json; only safetensors weights "
            "are read (a pickle can run code): convert with transformers' save_pretrained, or give a .gguf file"
        )
    weight_map = read_json(index).group("weight_map")
    if weight_map is None:
        raise ModelLoadError(f"{index}: 'weight_map' is missing; download the file again")
    names = sorted({weight_map.text(name) for name in weight_map.values})
    for name in names:
        if Path(name).name != name:
            raise ModelLoadError(f"{index}: shard {name!r}: must be a file name without a folder; the file is corrupt")
        if not (directory / name).is_file():
            raise ModelLoadError(f"{directory}: shard {name!r}, named in {index.name}, is missing; download it")
    return [directory / name for name in names]


def _stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(file, framework="pt") as shard:
            slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118 (it is no dict)
            for name, piece in slices.items():
                if piece.get_dtype() not in _FLOAT_TYPES:
                    raise ModelLoadError(
                        f"{file}: tensor {name!r} has type {piece.get_dtype()}; supported are "
                        f"{', '.join(sorted(_FLOAT_TYPES))}; use an unquantised model or a GGUF file"
                    )
            return {name: tuple(piece.get_shape()) for name, piece in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{file}: is cut off or corrupt ({error}); download it again") from error


def read_json(file: Path) -> Fields:
    """Read a JSON object.

    Raises:
        ModelLoadError: The file is missing, is not JSON, or holds something else.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelLoadError(f"{file}: no such file; the model's directory is incomplete: download it again") from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file}: can't be read as JSON ({error}); download it again") from error
    if not isinstance(values, dict):
        raise ModelLoadError(f"{file}: must hold a JSON object, not {type(values).__name__}; download it again")
    return Fields(source=str(file), values=values)


def read_optional_json(file: Path) -> Fields:
    """Read a JSON object; a file that is absent counts as an empty one."""
    return read_json(file) if file.is_file() else Fields(source=str(file), values={})


def tokenizer_from_directory(directory: Path, config: Fields) -> Tokenizer:
    """Build the tokenizer of a model directory, with its chat template and every id that ends a text.

    Args:
        directory: Holds ``tokenizer.json`` and, where the model has them, ``tokenizer_config.json``,
            ``generation_config.json`` and ``chat_template.jinja``.
        config: The values of ``config.json``.

    Raises:
        ModelLoadError: A file is missing or malformed.
    """
    file = directory / "tokenizer.json"
    try:
        backend = load_tokenizer_json(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(
            f"{file}: can't be read ({error}); write it with `AutoTokenizer.from_pretrained(...).save_pretrained(...)` "
            "of transformers"
        ) from error
    settings = read_optional_json(directory / "tokenizer_config.json")
    special_tokens = {name: token for name in _SPECIAL_NAMES if (token := _token_text(settings, name)) is not None}
    generation = read_optional_json(directory / "generation_config.json")
    eos_ids = {token_id for source in (generation, config) for token_id in source.integers("eos_token_id", [])}
    if not eos_ids and "eos_token" in special_tokens:
        end_id = backend.token_to_id(special_tokens["eos_token"])
        eos_ids = set() if end_id is None else {end_id}
    return Tokenizer(
        backend,
        eos_ids=eos_ids,
        chat_template=_chat_template(directory, settings),
        special_tokens=special_tokens,
    )


def _token_text(settings: Fields, name: str) -> str | None:
    """Return a named token, written either as a string or as an object with ``content``."""
    if name not in settings:
        return None
    if isinstance(settings.values[name], str):
        return settings.text(name)
    group = settings.group(name)
    return None if group is None else group.text("content")


def _chat_template(directory: Path, settings: Fields) -> str | None:
    """Return the default template: the file of its own first, then ``tokenizer_config.json``."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelLoadError(f"{file}: can't be read ({error}); download it again") from error
    if "chat_template" not in settings:
        return None
    templates = settings.values["chat_template"]
    if not isinstance(templates, list):
        return settings.text("chat_template")
    named = [Fields(source=f"{settings.source}: chat_template", values=item) for item in templates]
    return next((item.text("template") for item in named if item.text("name") == "default"), None)


def download(name: str, *, also: Sequence[str] = ()) -> Path:
    """Fetch a model from the Hugging Face hub, or find it in the local cache.

    Args:
        name: Its name on the hub.
        also: Further files to fetch.

    Raises:
        ModelLoadError: The hub has no such model, or can't be reached and the cache does not hold it.
        MissingDependencyError: ``huggingface_hub`` is not installed.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise MissingDependencyError(
            f"model {name!r} is a hub name and needs huggingface_hub: run `pip install huggingface_hub`, or give a "
            "directory or a .gguf file"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=[*_HUB_FILES, *also]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelLoadError(
            f"{name!r} is no local file or directory and can't be had from the Hugging Face hub ({reason}); check the "
            "spelling and the connection, or give the path of a model directory or .gguf file"
        ) from error
