"""Decoder weights and configuration out of a GGUF file, tensor by tensor."""

import re
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from forerun.core.errors import ModelLoadError
from forerun.models.config import DecoderConfig, Family
from forerun.models.gguf_header import GgufHeader, GgufTensorInfo, read_header
from forerun.models.layout import check_shapes
from forerun.nn.block_formats import BLOCK_BYTES, dequantize_blocks
from forerun.nn.rope import RopeScaling

_FLOAT_TYPES = frozenset({GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16})
_BLOCK_TYPES = frozenset(
    {
        GGMLQuantizationType.Q8_0,
        GGMLQuantizationType.Q4_0,
        GGMLQuantizationType.Q4_1,
        GGMLQuantizationType.Q4_K,
        GGMLQuantizationType.Q6_K,
    }
)
SUPPORTED_TYPES = _FLOAT_TYPES | _BLOCK_TYPES

_FAMILIES: dict[str, Family] = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}

_TOP_NAMES = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_PATTERN = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_ROPE_DIVISORS = "rope_freqs.weight"
_CHUNK_VALUES = 1 << 18  # values dequantised at a time; scratch arrays of this size stay in the cache


def decoder_name(name: str) -> str:
    """Return the decoder's name of a GGUF tensor; a tensor it has no name for keeps its own."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    match = _LAYER_PATTERN.fullmatch(name)
    if match is None or match[2] not in _LAYER_NAMES:
        return name
    return f"layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"


class GgufTensors:
    """Reads decoder parameters out of a GGUF file; see :class:`forerun.models.layout.TensorReader`.

    Files of architecture ``llama`` hold the rows of q and k in the order of llama.cpp's interleaved rotary
    embedding; reading puts them back into halves, the order of Hugging Face and of :func:`forerun.nn.rope.apply_rope`.
    """

    def __init__(self, header: GgufHeader, config: DecoderConfig) -> None:
        self._path = header.path
        self._infos = {decoder_name(name): info for name, info in header.tensors.items() if name != _ROPE_DIVISORS}
        self._num_heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
        self._is_interleaved = header.metadata.text("general.architecture") == "llama"
        check_shapes(str(header.path), {name: info.shape for name, info in self._infos.items()}, config)

    def names(self) -> tuple[str, ...]:
        """Return the parameter names."""
        return tuple(self._infos)

    def storage_type(self, name: str) -> str:
        """Return how the file stores a parameter, such as ``Q4_1``."""
        return self._infos[name].type.name

    @property
    def quantised(self) -> bool:
        """Whether any parameter is stored in quantised blocks."""
        return any(info.type in _BLOCK_TYPES for info in self._infos.values())

    def tensor(self, name: str) -> np.ndarray:
        """Dequantise one parameter into a new float32 array."""
        if name not in self._infos:
            raise ModelLoadError(f"{self._path}: no parameter {name!r}; names() lists those there are")
        values = read_tensor(self._path, self._infos[name])
        projection = name.split(".")[-2]
        if self._is_interleaved and projection in self._num_heads:
            values = _halves_from_pairs(values, self._num_heads[projection])
        return values


def read_tensor(path: Path, info: GgufTensorInfo) -> np.ndarray:
    """Read and dequantise one tensor in pieces, so that little more than the result is ever in memory.

    Raises:
        ModelLoadError: The file can't be read or has become shorter since its header was.
    """
    block_size, block_bytes = GGML_QUANT_SIZES[info.type]
    out = np.empty(info.num_bytes // block_bytes * block_size, dtype=np.float32)
    chunk_bytes = _CHUNK_VALUES // block_size * block_bytes
    try:
        with path.open("rb") as file:
            file.seek(info.offset_bytes)
            for start in range(0, info.num_bytes, chunk_bytes):
                raw = file.read(min(chunk_bytes, info.num_bytes - start))
                if len(raw) < min(chunk_bytes, info.num_bytes - start):
                    raise ModelLoadError(f"{path}: became shorter while it was read; download it again")
                first, count = start // block_bytes * block_size, len(raw) // block_bytes * block_size
                out[first : first + count] = _values(np.frombuffer(raw, dtype=np.uint8), info.type)
    except OSError as error:
        raise ModelLoadError(f"{path}: can't be read ({error}); check the file and its permissions") from error
    return out.reshape(info.shape)


def _values(raw: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    if kind.name in BLOCK_BYTES:
        return dequantize_blocks(raw, kind.name)
    # One row per call: the library's own grouping of rows costs more than the arithmetic.
    return dequantize(raw[np.newaxis], kind)[0]


def _halves_from_pairs(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder the rows of each head from (0, half, 1, half + 1, ...) to (0, 1, ..., half, half + 1, ...)."""
    per_head = values.reshape(num_heads, values.shape[0] // num_heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(per_head.swapaxes(1, 2)).reshape(values.shape)


def read_gguf(path: Path) -> tuple[GgufHeader, DecoderConfig, GgufTensors]:
    """Open a GGUF file: header, configuration and a lazy reader of its parameters.

    Raises:
        ModelLoadError: The file is missing, corrupt, or holds a model or a tensor type that is not supported.
    """
    header = read_header(path)
    for name, info in header.tensors.items():
        if info.type not in SUPPORTED_TYPES:
            allowed = ", ".join(sorted(kind.name for kind in SUPPORTED_TYPES))
            raise ModelLoadError(
                f"{path}: tensor {name!r} has type {info.type.name}, for which there is no kernel; supported are "
                f"{allowed}; use a file of one of those types, or convert with `llama-quantize`"
            )
    config = config_from_header(header)
    return header, config, GgufTensors(header, config)


def config_from_header(header: GgufHeader) -> DecoderConfig:
    """Translate a GGUF file's metadata.

    Raises:
        ModelLoadError: A key is missing or malformed, or the model needs something the decoder does not implement.
    """
    arch = header.metadata.text("general.architecture")
    if arch not in _FAMILIES:
        raise ModelLoadError(
            f"{header.path}: general.architecture={arch!r} is not supported; supported are "
            f"{', '.join(sorted(_FAMILIES))}; choose a model of one of these families"
        )

    def number(key: str, default: int | None = None) -> int:
        return header.metadata.integer(f"{arch}.{key}", default)

    num_parts = header.metadata.integer("split.count", 1)
    if num_parts > 1:
        raise ModelLoadError(
            f"{header.path}: is one of {num_parts} parts of a split file, which are not read; merge them with "
            "`llama-gguf-split --merge`"
        )
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelLoadError(
            f"{header.path}: no two-dimensional tensor 'token_embd.weight': the file holds no language model; give "
            "one that does"
        )
    hidden_size, num_heads = number("embedding_length"), number("attention.head_count")
    if number("expert_count", 0):
        raise ModelLoadError(
            f"{header.path}: {arch}.expert_count={number('expert_count')}: mixtures of experts are not implemented; "
            "use a dense model"
        )
    head_dim = number("attention.key_length", hidden_size // max(num_heads, 1))
    if number("rope.dimension_count", head_dim) != head_dim:
        raise ModelLoadError(
            f"{header.path}: {arch}.rope.dimension_count={number('rope.dimension_count')} differs from the head "
            f"width {head_dim}: partial rotary embeddings are not implemented; use another model"
        )
    num_kv_heads = number("attention.head_count_kv", num_heads)
    return DecoderConfig(
        family=_FAMILIES[arch],
        vocab_size=embedding.shape[0],
        hidden_size=hidden_size,
        intermediate_size=number("feed_forward_length"),
        num_layers=number("block_count"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_len=number("context_length"),
        rope_theta=header.metadata.real(f"{arch}.rope.freq_base", 10000.0),
        rope_scaling=_rope_scaling(header, arch),
        norm_eps=header.metadata.real(f"{arch}.attention.layer_norm_rms_epsilon"),
        tie_embeddings="output.weight" not in header.tensors,
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in header.tensors,
        sliding_window=number("attention.sliding_window", 0) or None,
    )


def _rope_scaling(header: GgufHeader, arch: str) -> RopeScaling | None:
    divisors = header.tensors.get(_ROPE_DIVISORS)
    if divisors is not None:
        return RopeScaling(kind="divisors", divisors=tuple(read_tensor(header.path, divisors).ravel().tolist()))
    kind = header.metadata.text(f"{arch}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "linear":
        raise ModelLoadError(
            f"{header.path}: {arch}.rope.scaling.type={kind!r} is not implemented; supported are none, linear and the "
            "per-frequency factors of Llama 3.1; use a model without it"
        )
    return RopeScaling(kind="linear", factor=header.metadata.real(f"{arch}.rope.scaling.factor"))
