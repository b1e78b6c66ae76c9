"""Reads world models in the format of the published LeWorldModel checkpoints: ``config.json`` and ``weights.pt``.

The file of weights is a torch archive; only tensors are taken out of it, nothing in it is executed. Names of the
vision transformer's tensors are those of either generation of ``transformers``.

Reference:
    github.com/lucas-maes/le-wm (``load_weights.py``, ``config/train/model/lewm.yaml``) and stable-worldmodel's
    ``wm/lewm``. Written from their names and shapes; read so far: models of this layout with random weights, no
    published file.
"""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from forerun.core.errors import CheckpointError, ForerunError
from forerun.data.normalizer import Normalizer
from forerun.models.vit import VitConfig
from forerun.worldmodels.jepa.config import JepaConfig
from forerun.worldmodels.jepa.model import Jepa
from forerun.worldmodels.jepa.predictor import PredictorConfig

_CONFIG_FILE: Final = "config.json"
_WEIGHT_FILES: Final = ("weights.pt", "weights.safetensors")
_VIT_SIZES: Final = {
    "tiny": {"width": 192, "num_layers": 12, "num_heads": 3, "mlp_width": 768},
    "small": {"width": 384, "num_layers": 12, "num_heads": 6, "mlp_width": 1536},
    "base": {"width": 768, "num_layers": 12, "num_heads": 12, "mlp_width": 3072},
}
_OLD_VIT_NAMES: Final = (
    ("encoder.encoder.layer.", "encoder.layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)
_NAMES: Final = (
    (r"encoder\.embeddings\.cls_token", "encoder.class_token"),
    (r"encoder\.embeddings\.position_embeddings", "encoder.positions"),
    (r"encoder\.embeddings\.patch_embeddings\.projection\.", "encoder.to_patches."),
    (r"encoder\.layernorm\.", "encoder.norm."),
    (r"encoder\.layers\.(\d+)\.layernorm_before\.", r"encoder.blocks.\1.attention_norm."),
    (r"encoder\.layers\.(\d+)\.layernorm_after\.", r"encoder.blocks.\1.mlp_norm."),
    (r"encoder\.layers\.(\d+)\.attention\.o_proj\.", r"encoder.blocks.\1.attention.to_out.0."),
    (r"encoder\.layers\.(\d+)\.mlp\.fc1\.", r"encoder.blocks.\1.mlp.0."),
    (r"encoder\.layers\.(\d+)\.mlp\.fc2\.", r"encoder.blocks.\1.mlp.3."),
    (r"predictor\.pos_embedding", "predictor.positions"),
    (r"predictor\.transformer\.norm\.", "predictor.norm."),
    (r"predictor\.transformer\.layers\.(\d+)\.attn\.norm\.", r"predictor.blocks.\1.attention_norm."),
    (r"predictor\.transformer\.layers\.(\d+)\.attn\.", r"predictor.blocks.\1.attention."),
    (r"predictor\.transformer\.layers\.(\d+)\.mlp\.net\.0\.", r"predictor.blocks.\1.mlp_norm."),
    (r"predictor\.transformer\.layers\.(\d+)\.mlp\.net\.1\.", r"predictor.blocks.\1.mlp.0."),
    (r"predictor\.transformer\.layers\.(\d+)\.mlp\.net\.4\.", r"predictor.blocks.\1.mlp.3."),
    (r"predictor\.transformer\.layers\.(\d+)\.adaLN_modulation\.", r"predictor.blocks.\1.to_modulation."),
    (r"action_encoder\.patch_embed\.", "action_embedder.0."),
    (r"action_encoder\.embed\.0\.", "action_embedder.1."),
    (r"action_encoder\.embed\.2\.", "action_embedder.3."),
    (r"projector\.net\.", "projector."),
    (r"pred_proj\.net\.", "prediction_projector."),
)
_NOT_NEEDED: Final = re.compile(r"encoder\.pooler\.|encoder\.embeddings\.mask_token|sigreg\.")
_QKV: Final = re.compile(r"encoder\.layers\.(\d+)\.attention\.q_proj\.(weight|bias)")


def load_published(folder: Path, *, action_normalizer: Normalizer | None = None) -> Jepa:
    """Return the model of a folder, in evaluation mode.

    Args:
        folder: Holds ``config.json``, and ``weights.pt`` or ``weights.safetensors``.
        action_normalizer: The published files leave it to the data; ``None``: actions are standardised already.

    Raises:
        CheckpointError: A file is missing or damaged, or describes a model that ours can't be.
    """
    try:
        record = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
        config = _config(record)
        model = Jepa(config, action_dim=record["action_encoder"]["input_dim"], action_normalizer=action_normalizer)
        weights = translated(_weights(folder))
        statistics = {f"action_normalizer.{name}": tensor for name, tensor in model.action_normalizer.named_buffers()}
        model.load_state_dict(weights | statistics)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        detail = error if isinstance(error, ForerunError) else f"{type(error).__name__}: {str(error)[:300]}"
        raise CheckpointError(
            f"{folder}: holds no readable LeWorldModel checkpoint ({detail}); it must hold {_CONFIG_FILE} and "
            f"{_WEIGHT_FILES[0]} as published"
        ) from error
    return model.eval()


def translated(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under our names: queries, keys and values as one, a convolution of width 1 as a matrix.

    Raises:
        CheckpointError: A name is unknown.
    """
    modern: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        name = name.removeprefix("model.")
        if name.startswith(_OLD_VIT_NAMES[0][0]):
            for old, new in _OLD_VIT_NAMES:
                name = name.replace(old, new)
        modern[name] = tensor
    found: dict[str, Tensor] = {}
    for name, tensor in modern.items():
        if _NOT_NEEDED.match(name) or re.search(r"\.attention\.[kv]_proj\.", name):
            continue
        if queries := _QKV.fullmatch(name):
            parts = [modern[name.replace("q_proj", f"{kind}_proj")] for kind in "qkv"]
            found[f"encoder.blocks.{queries[1]}.attention.to_qkv.{queries[2]}"] = torch.cat(parts)
            continue
        new_name = _new_name(name)
        found[new_name] = tensor.squeeze(-1) if new_name == "action_embedder.0.weight" else tensor
    return found


def _new_name(name: str) -> str:
    for pattern, replacement in _NAMES:
        if match := re.match(pattern, name):
            return match.expand(replacement) + name[match.end() :]
    raise CheckpointError(f"tensor {name!r}: is of no part of a LeWorldModel that is known here")


def _config(record: Mapping[str, Any]) -> JepaConfig:
    encoder, predictor, actions = record["encoder"], record["predictor"], record["action_encoder"]
    projector, prediction = record["projector"], record["pred_proj"]
    if encoder["size"] not in _VIT_SIZES:
        raise CheckpointError(f"encoder.size={encoder['size']!r}: known are {', '.join(_VIT_SIZES)}")
    latent_dim, width = projector["output_dim"], predictor["hidden_dim"]
    same = {
        "predictor.input_dim": (predictor["input_dim"], width),
        "predictor.output_dim": (predictor.get("output_dim") or width, width),
        "projector.output_dim": (latent_dim, width),
        "pred_proj.output_dim": (prediction["output_dim"], latent_dim),
        "pred_proj.hidden_dim": (prediction["hidden_dim"], projector["hidden_dim"]),
        "action_encoder.emb_dim": (actions["emb_dim"], width),
        "action_encoder.mlp_scale": (actions.get("mlp_scale", 4), 4),
    }
    for name, (value, wanted) in same.items():
        if value != wanted:
            raise CheckpointError(f"{name}={value}: only {wanted} is supported, as in all published models")
    return JepaConfig(
        encoder=VitConfig(
            image_size=encoder["image_size"], patch_size=encoder["patch_size"], **_VIT_SIZES[encoder["size"]]
        ),
        predictor=PredictorConfig(
            width=width,
            num_blocks=predictor["depth"],
            num_heads=predictor["heads"],
            head_dim=predictor.get("dim_head", 64),
            mlp_width=predictor["mlp_dim"],
            history=predictor["num_frames"],
            dropout=predictor.get("dropout", 0.0),
        ),
        latent_dim=latent_dim,
        projector_width=projector["hidden_dim"],
        action_width=actions.get("smoothed_dim", 10),
    )


def _weights(folder: Path) -> Mapping[str, Tensor]:
    for name in _WEIGHT_FILES:
        path = folder / name
        if not path.is_file():
            continue
        if path.suffix == ".safetensors":
            return load_file(path)
        archive = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("state_dict", "model"):
            if isinstance(archive.get(wrapper), Mapping):
                return archive[wrapper]
        return archive
    raise CheckpointError(f"none of {', '.join(_WEIGHT_FILES)} is there")
