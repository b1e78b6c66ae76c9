"""Drafts: a model with the target's vocabulary, one distilled from the target, some of its layers, an EAGLE-3 head."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from forerun.core.errors import ModelLoadError, VocabMismatchError
from forerun.models.checkpoint import Checkpoint, Ensemble
from forerun.models.config import DecoderConfig
from forerun.models.eagle3 import Eagle3Config
from forerun.models.eagle3_file import PICKLED_WEIGHTS, is_eagle3, read_eagle3
from forerun.models.huggingface import download
from forerun.models.inflation import InflatedTensors, inflated_name, inflation_to
from forerun.models.load import load_checkpoint

DRAFT_FILE = "draft.safetensors"
MANIFEST_FILE = "draft.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """What a runner needs to run a draft.

    Attributes:
        config: Its shape.
        tensor: Gives a weight by name; embedding and head may be the target's.
        vocab_ids: Target ids of a reduced output head, ascending; ``None``: the whole vocabulary.
        source: Where it came from.
        borrows_embedding: Whether its embedding is the target's.
        state_layer_ids: Layers of the target, one for each of the draft's, whose cached keys and values the draft reads
            for all tokens that the target has read; empty: the draft has only its own.
        eagle3: The shape of an EAGLE-3 head, which reads the target's hidden states; ``config`` is then that of its
            layer. ``None`` for a decoder.
        manifest: How a distilled draft was made; empty for others.
    """

    config: DecoderConfig
    tensor: Callable[[str], np.ndarray]
    vocab_ids: np.ndarray | None
    source: str
    borrows_embedding: bool = False
    state_layer_ids: tuple[int, ...] = ()
    eagle3: Eagle3Config | None = None
    manifest: dict[str, Any] = field(default_factory=dict[str, Any])


def default_draft_path() -> Path:
    """Return the directory of the draft that ships with the package, for the embedded target."""
    return Path(str(files("forerun.models") / "default_draft"))


def load_draft(name: str, target: Checkpoint) -> Draft:
    """Open a draft for a target.

    Args:
        name: ``default`` (the shipped one), ``self`` (layers of the target; the first member of an ensemble), a
            directory that ``forerun train-draft`` wrote, an EAGLE-3 head (a directory or hub name), or a model as
            :func:`forerun.models.load.load_checkpoint` takes.
        target: The model it drafts for.

    Raises:
        ModelLoadError: It is missing or corrupt.
        VocabMismatchError: Its tokens are not the target's.
    """
    if target.base is not None:
        # A draft of the small model drafts for the large one: they have one law. Their cached states have two shapes.
        draft = load_draft(name, target.base)
        if draft.eagle3 is not None:
            raise ModelLoadError(
                f"draft {name}: reads hidden states, and those of {target.source} have another width than those it was "
                f"made for; use it with {target.base.source}, or choose another draft"
            )
        return replace(draft, state_layer_ids=(), borrows_embedding=False)
    if (wanted := inflated_name(name)) is not None:
        return _inflated(load_draft(wanted[1], target), num_params=wanted[0])
    if name == "self" and target.ensemble is not None:
        return first_member_draft(target.ensemble)
    if name == "self":
        return layer_skip_draft(target, layer_ids=default_layer_skip(target.config.num_layers))
    path = default_draft_path() if name == "default" else Path(name)
    if (path / MANIFEST_FILE).is_file() or name == "default":
        return _load_distilled(path, target)
    if (directory := _eagle3_directory(name)) is not None:
        return _load_eagle3(directory, target)
    checkpoint = load_checkpoint(name)
    if checkpoint.tokenizer.vocab_digest() != target.tokenizer.vocab_digest():
        raise VocabMismatchError(
            f"draft {name}: its vocabulary differs from that of {target.source} (the tokens, not only their number); "
            "choose a draft of the same family, train one with `forerun train-draft`, or use the n-gram draft"
        )
    shared = np.arange(min(checkpoint.config.vocab_size, target.config.vocab_size), dtype=np.int64)
    return Draft(
        config=checkpoint.config,
        tensor=checkpoint.tensors.tensor,
        vocab_ids=None if checkpoint.config.vocab_size == target.config.vocab_size else shared,
        source=name,
    )


def default_layer_skip(num_layers: int) -> tuple[int, ...]:
    """Return the layers of a self-draft: a third of them, from both ends, where a decoder is least redundant."""
    kept = max(2, num_layers // 3)
    first = kept // 2
    return tuple(range(first)) + tuple(range(num_layers - (kept - first), num_layers))


def layer_skip_draft(target: Checkpoint, *, layer_ids: tuple[int, ...]) -> Draft:
    """Return the draft made of some of the target's own layers, with its embedding and head."""

    def tensor(name: str) -> np.ndarray:
        if name.startswith("layers."):
            _, index, rest = name.split(".", 2)
            name = f"layers.{layer_ids[int(index)]}.{rest}"
        return target.tensors.tensor(name)

    config = replace(target.config, num_layers=len(layer_ids))
    return Draft(
        config=config, tensor=tensor, vocab_ids=None, source="self", borrows_embedding=True, state_layer_ids=layer_ids
    )


def first_member_draft(ensemble: Ensemble) -> Draft:
    """Return the draft that is an ensemble's first member; it reads the keys and values of that member's layers."""
    member = ensemble.members[0]
    return Draft(
        config=member.config,
        tensor=member.tensors.tensor,
        vocab_ids=None,
        source=member.source,
        state_layer_ids=tuple(range(member.config.num_layers)),
    )


def _inflated(draft: Draft, *, num_params: float) -> Draft:
    config = inflation_to(draft.config, num_params=num_params).apply(draft.config)
    return replace(
        draft,
        config=config,
        tensor=InflatedTensors(draft.tensor, draft.config, config).tensor,
        source=f"{draft.source}, inflated",
        borrows_embedding=False,
        state_layer_ids=(),
    )


def _load_distilled(path: Path, target: Checkpoint) -> Draft:
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text())
        with safe_open(path / DRAFT_FILE, framework="np") as file:
            names = set(file.keys())
            vocab_ids = file.get_tensor("vocab_ids").astype(np.int64)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelLoadError(
            f"draft {path}: can't be read ({error}); train it again with `forerun train-draft`"
        ) from error
    if manifest["vocab_digest"] != target.tokenizer.vocab_digest():
        raise VocabMismatchError(
            f"draft {path} was distilled from {manifest['target']}, whose vocabulary differs from that of "
            f"{target.source}; train a draft for this target with `forerun train-draft`, or use the n-gram draft"
        )
    if manifest["hidden_size"] != target.config.hidden_size:
        raise ModelLoadError(
            f"draft {path} borrows embeddings of width {manifest['hidden_size']} but {target.source} has "
            f"{target.config.hidden_size}; train a draft for this target with `forerun train-draft`"
        )

    lent_ids = tuple(manifest.get("state_layer_ids", ()))
    if lent_ids and (
        len(lent_ids) != manifest["num_layers"] or not set(lent_ids) <= {*range(target.config.num_layers)}
    ):
        raise ModelLoadError(
            f"draft {path} reads keys and values of the layers {list(lent_ids)}, one for each of its "
            f"{manifest['num_layers']}, and {target.source} has {target.config.num_layers}; train a draft for this "
            "target with `forerun train-draft`"
        )

    def tensor(name: str) -> np.ndarray:
        if name not in names:
            return target.tensors.tensor(name)
        with safe_open(path / DRAFT_FILE, framework="np") as file:
            stored = file.get_tensor(name)
        scale_name = f"{name}.scale"
        if scale_name in names:
            with safe_open(path / DRAFT_FILE, framework="np") as file:
                return stored.astype(np.float32) * file.get_tensor(scale_name)[:, None]
        return stored.astype(np.float32)

    config = replace(target.config, num_layers=manifest["num_layers"])
    return Draft(
        config=config,
        tensor=tensor,
        vocab_ids=vocab_ids,
        source=str(path),
        borrows_embedding=True,
        state_layer_ids=lent_ids,
        manifest=manifest,
    )


def _eagle3_directory(name: str) -> Path | None:
    """Return the directory of an EAGLE-3 head, from the hub if that is what the name says; ``None``: it is none."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path if is_eagle3(path) else None
    if path.exists() or path.is_absolute() or name.startswith(".") or path.suffix == ".gguf":
        return None
    directory = download(name)
    if not is_eagle3(directory):
        return None
    return directory if any(directory.glob("model*.safetensors")) else download(name, also=[PICKLED_WEIGHTS])


def _load_eagle3(directory: Path, target: Checkpoint) -> Draft:
    if target.ensemble is not None:
        raise ModelLoadError(
            f"draft {directory}: an EAGLE-3 head reads the hidden states of one model, and {target.source} is an "
            "ensemble; choose another draft"
        )
    head = read_eagle3(directory, target)
    return Draft(
        config=head.config.layer,
        tensor=head.tensor,
        vocab_ids=head.vocab_ids,
        source=str(directory),
        eagle3=head.config,
    )
