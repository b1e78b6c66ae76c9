"""EAGLE-3 heads on disk, in the formats in which they are published.

A directory with ``config.json`` and the weights of one layer. EAGLE itself, SGLang and SpecForge describe the head at
the top of the file; the ``speculators`` library, which vLLM reads, nests its layer in ``transformer_layer_config``. All
have the tensors of :func:`~forerun.models.eagle3.head_shapes` (``midlayer`` may be called ``layers.0``), and where the
head proposes fewer tokens than the target has, ``d2t``, what to add to the number of each to get the target's id, and
``t2d``, which of the target's tokens they are. Embedding and head may be missing: then they are the target's.

The layers whose hidden states are read have two spellings. ``eagle_aux_hidden_state_layer_ids`` at the top (vLLM) names
layers by what enters them; nested in ``eagle_config`` (SGLang) by what leaves them, one less.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from forerun.core.errors import ConfigError, ModelLoadError, VocabMismatchError
from forerun.models.checkpoint import Checkpoint
from forerun.models.config import DecoderConfig
from forerun.models.eagle3 import Eagle3Config, Eagle3Head, head_shapes
from forerun.models.export import config_to_json
from forerun.models.fields import Fields
from forerun.models.huggingface import read_json, shard_files
from forerun.models.huggingface_config import config_from_json
from forerun.models.layout import check_expected

PICKLED_WEIGHTS: Final = "pytorch_model.bin"
"""The weights of heads that were published before safetensors; read without running anything in them."""
_LAYER_IDS: Final = "eagle_aux_hidden_state_layer_ids"
_BORROWED: Final = ("embed_tokens.weight", "lm_head.weight")
_EMBEDDING, _HEAD = _BORROWED
_LEAST_LAYERS: Final = 7
"""From so many on the usual three layers are different."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Eagle3File:
    """A head as read.

    Attributes:
        config: Its shape.
        tensor: Gives a weight by its name in ``Eagle3Head.state_dict()`` as float32.
        vocab_ids: Target ids of what it can propose, int64, ascending; ``None``: all of the target's.
    """

    config: Eagle3Config
    tensor: Callable[[str], np.ndarray]
    vocab_ids: np.ndarray | None


def is_eagle3(directory: Path) -> bool:
    """Return whether a directory says that it holds an EAGLE-3 head.

    Raises:
        ModelLoadError: Its ``config.json`` can't be read.
    """
    file = directory / "config.json"
    if not file.is_file():
        return False
    fields = read_json(file)
    named = [fields.text("speculators_model_type", ""), *fields.strings("architectures", [])]
    return "draft_vocab_size" in fields or any("eagle3" in name.lower() for name in named)


def usual_layers(num_layers: int) -> tuple[int, ...]:
    """Return which layers' inputs are read where nothing is said: an early one, the middle, a late one.

    Returns:
        Three; none where the target has so few layers that they would not be different.
    """
    return (2, num_layers // 2, num_layers - 3) if num_layers >= _LEAST_LAYERS else ()


def read_eagle3(directory: Path, target: Checkpoint) -> Eagle3File:
    """Open a head for a target.

    Args:
        directory: As published.
        target: The model it drafts for; it gives the embedding and the head where they are not in the file.

    Raises:
        ModelLoadError: It is missing, corrupt, needs what is not implemented, or was made for a target of another
            shape.
        VocabMismatchError: It was made for a vocabulary of another size.
    """
    fields = read_json(directory / "config.json")
    try:
        config = _config(fields, target.config)
    except ConfigError as error:
        raise ModelLoadError(f"{fields.source}: {error}") from error
    source = str(directory)
    if config.layer.vocab_size != target.config.vocab_size:
        raise VocabMismatchError(
            f"draft {source} reads a vocabulary of {config.layer.vocab_size} tokens, but {target.source} has "
            f"{target.config.vocab_size}: it was made for another target; choose the head of this one"
        )
    if config.target_hidden_size != target.config.hidden_size:
        raise ModelLoadError(
            f"draft {source} reads hidden states of width {config.target_hidden_size}, but those of {target.source} "
            f"have {target.config.hidden_size}: it was made for another target; choose the head of this one"
        )
    stored = {_own_name(name): tensor for name, tensor in _read_tensors(directory).items()}
    vocab_ids = _vocab_ids(stored, config, source)
    borrowed = _borrowed(stored, config, target, source)
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    check_expected(
        source,
        shapes | {name: tuple(values.shape) for name, values in borrowed.items()},
        head_shapes(config),
        what="an EAGLE-3 head of one layer",
        instead="use another head",
    )
    order = None if vocab_ids is None or (np.diff(vocab_ids) > 0).all() else np.argsort(vocab_ids)

    def tensor(name: str) -> np.ndarray:
        values = borrowed[name] if name in borrowed else stored[name].to(torch.float32, copy=True).numpy()
        return values if name != _HEAD or order is None else values[order]

    return Eagle3File(config=config, tensor=tensor, vocab_ids=None if vocab_ids is None else np.sort(vocab_ids))


def save_eagle3(head: Eagle3Head, directory: Path, *, vocab_ids: np.ndarray | None, embeds: bool = True) -> None:
    """Write a head in the published format, with both spellings of its layers.

    Args:
        head: Saved in the type of its parameters.
        directory: Made if it does not exist; files of the same names are replaced.
        vocab_ids: Target ids of what it can propose, ascending; ``None``: all of the target's.
        embeds: Whether the embedding is written; otherwise it is the target's.

    Raises:
        ConfigError: The layer has no spelling in ``config.json``.
        OSError: The directory can't be written.
    """
    config = head.config
    values = config_to_json(config.layer) | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "tie_word_embeddings": False,
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.target_hidden_size,
        _LAYER_IDS: list(config.layer_ids),
        "norm_before_residual": config.norm_before_residual,
        "norm_before_fc": config.norm_before_fc,
        "fc_norm": config.fc_norm,
        "norm_output": config.norm_output,
    }
    if min(config.layer_ids) > 0:
        values["eagle_config"] = {_LAYER_IDS: [layer - 1 for layer in config.layer_ids], "use_aux_hidden_state": True}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    if not embeds:
        del state[_EMBEDDING]
    if vocab_ids is not None:
        known = torch.zeros(config.layer.vocab_size, dtype=torch.bool)
        known[torch.from_numpy(vocab_ids)] = True
        state |= {"d2t": torch.from_numpy(vocab_ids - np.arange(len(vocab_ids))), "t2d": known}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


def _config(fields: Fields, target: DecoderConfig) -> Eagle3Config:
    kind = fields.text("speculators_model_type", "eagle3")
    if kind != "eagle3":
        raise ModelLoadError(
            f"{fields.source}: speculators_model_type={kind!r} is not implemented; use an EAGLE-3 head"
        )
    eagle = fields.group("eagle_config")
    if eagle is not None and not eagle.flag("use_aux_hidden_state", True):
        raise ModelLoadError(
            f"{eagle.source}: use_aux_hidden_state=false, one hidden state as in EAGLE-2, is not implemented; use an "
            "EAGLE-3 head"
        )
    layer = config_from_json(fields.group("transformer_layer_config") or fields)
    return Eagle3Config(
        # What the head's file says of lengths is often a default: it runs as far as its target does.
        layer=replace(layer, tie_embeddings=False, max_len=max(layer.max_len, target.max_len)),
        layer_ids=_layer_ids(fields, eagle, target.num_layers),
        target_hidden_size=fields.integer("target_hidden_size", layer.hidden_size),
        draft_vocab_size=fields.integer("draft_vocab_size", layer.vocab_size),
        norm_before_residual=fields.flag("norm_before_residual", False),
        norm_before_fc=fields.flag("norm_before_fc", False),
        fc_norm=fields.flag("fc_norm", False),
        norm_output=fields.flag("norm_output", False),
    )


def _layer_ids(fields: Fields, eagle: Fields | None, num_layers: int) -> tuple[int, ...]:
    """Return which layers' inputs are read."""
    if _LAYER_IDS in fields:
        layer_ids = tuple(fields.integers(_LAYER_IDS))
    elif eagle is not None and _LAYER_IDS in eagle:
        layer_ids = tuple(layer + 1 for layer in eagle.integers(_LAYER_IDS))
    elif usual := usual_layers(num_layers):
        layer_ids = usual
    else:
        raise ModelLoadError(
            f"{fields.source}: does not say which layers it reads, and the usual three are not to be had of a target "
            f"of {num_layers} layers; set {_LAYER_IDS}"
        )
    if len(set(layer_ids)) < len(layer_ids) or not all(0 <= layer < num_layers for layer in layer_ids):
        raise ModelLoadError(
            f"{fields.source}: reads what enters the layers {list(layer_ids)}: must be different, and from 0 to "
            f"{num_layers - 1} for this target; choose the head of this target"
        )
    return layer_ids


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    """Return the tensors as stored; they stay in the file until they are read."""
    pickled = directory / PICKLED_WEIGHTS
    has_safetensors = any(directory.glob("model*.safetensors"))
    try:
        if pickled.is_file() and not has_safetensors:
            return dict(torch.load(pickled, map_location="cpu", weights_only=True, mmap=True))
        return {name: tensor for file in shard_files(directory) for name, tensor in load_file(file).items()}
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelLoadError(f"draft {directory}: its weights can't be read ({reason}); download them again") from error


def _own_name(stored: str) -> str:
    name = stored.removeprefix("model.")
    return f"midlayer.{name.removeprefix('layers.0.')}" if name.startswith("layers.0.") else name


def _vocab_ids(stored: dict[str, Tensor], config: Eagle3Config, source: str) -> np.ndarray | None:
    """Take the two maps of the vocabulary out of the tensors, and return the target's ids of the head's rows."""
    offsets, known = stored.pop("d2t", None), stored.pop("t2d", None)
    num_ids = config.layer.vocab_size
    if offsets is None:
        if config.draft_vocab_size != num_ids:
            raise ModelLoadError(
                f"draft {source}: proposes {config.draft_vocab_size} of {num_ids} tokens but does not say which (d2t "
                "is missing); download it again"
            )
        return None
    ids = offsets.long().numpy() + np.arange(len(offsets))
    is_right = len(ids) == config.draft_vocab_size == len(np.unique(ids)) and ids.min() >= 0 and ids.max() < num_ids
    if is_right and known is not None:
        is_right = known.numel() == num_ids and np.array_equal(np.flatnonzero(known.numpy()), np.sort(ids))
    if not is_right:
        raise ModelLoadError(
            f"draft {source}: its maps d2t and t2d do not name {config.draft_vocab_size} different tokens below "
            f"{num_ids}, the same in both; download it again"
        )
    return ids


def _borrowed(
    stored: Mapping[str, Tensor], config: Eagle3Config, target: Checkpoint, source: str
) -> dict[str, np.ndarray]:
    """Return the target's embedding and head, where the file has none of its own."""
    borrowed: dict[str, np.ndarray] = {}
    for name in _BORROWED:
        if name in stored:
            continue
        if name == _HEAD and config.draft_vocab_size != config.layer.vocab_size:
            raise ModelLoadError(f"draft {source}: {name!r} is missing; download it again")
        is_tied = name == _HEAD and target.config.tie_embeddings
        borrowed[name] = target.tensors.tensor(_EMBEDDING if is_tied else name)
    return borrowed
