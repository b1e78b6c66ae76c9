"""A tokenizer out of a GGUF file's metadata (byte-level BPE)."""

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import PreTokenizer

from forerun.core.errors import ModelLoadError
from forerun.models.gguf_header import GgufHeader
from forerun.models.tokenizer import Tokenizer

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How a text is cut before byte-pair merging: the regular expression, by tokenizer.ggml.pre.
_SPLITS = {
    "llama-bpe": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SYMBOLS_AND_SPACE}",
    "qwen2": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_SYMBOLS_AND_SPACE}",
}
_GPT2_SPLITS = frozenset({"gpt-2", "default"})
_BOS_BY_DEFAULT = frozenset({"llama-bpe"})
SUPPORTED_PRE_TOKENIZERS = (*sorted(_GPT2_SPLITS), *sorted(_SPLITS), "smollm")

# Tokens that end a turn or a text, by spelling: files name only one or two of a model's by id.
_END_TOKENS = frozenset({"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"})
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def tokenizer_from_gguf(header: GgufHeader) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes.

    Raises:
        ModelLoadError: The vocabulary is of a kind that can't be rebuilt from a GGUF file, or is malformed.
    """
    kind = header.metadata.text("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ModelLoadError(
            f"{header.path}: tokenizer.ggml.model={kind!r}: only byte-level BPE ('gpt2') can be rebuilt from a GGUF "
            "file; load the model's Hugging Face directory instead, which has its tokenizer.json"
        )
    tokens = header.metadata.strings("tokenizer.ggml.tokens")
    types = header.metadata.integers("tokenizer.ggml.token_type", [1] * len(tokens))
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ModelLoadError(
            f"{header.path}: {len(tokens)} tokens ({len(set(tokens))} different) and {len(types)} token types: must "
            "be as many, all different; the file is corrupt: download it again"
        )
    named = _named_ids(header, len(tokens))
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocab, merges=_merges(header, vocab)))
    pre = header.metadata.text("tokenizer.ggml.pre", "default")
    backend.pre_tokenizer = _pre_tokenizer(header, pre)
    backend.decoder = decoders.ByteLevel()
    for added, is_special in ((_CONTROL, True), (_USER_DEFINED, False)):
        backend.add_tokens(
            [
                AddedToken(token, normalized=False, special=is_special)
                for token, token_type in zip(tokens, types, strict=True)
                if token_type == added
            ]
        )
    if "bos_token_id" in named and header.metadata.flag("tokenizer.ggml.add_bos_token", pre in _BOS_BY_DEFAULT):
        bos_id = named["bos_token_id"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos_id]} $A", special_tokens=[(tokens[bos_id], bos_id)]
        )
    template = header.metadata.text("tokenizer.chat_template", "")
    return Tokenizer(
        backend,
        eos_ids={named[key] for key in _END_KEYS if key in named}
        | {index for index, token in enumerate(tokens) if token in _END_TOKENS and types[index] == _CONTROL},
        chat_template=template or None,
        special_tokens={key.removesuffix("_id"): tokens[index] for key, index in named.items()},
    )


def _named_ids(header: GgufHeader, num_tokens: int) -> dict[str, int]:
    """Return the ids that the file gives a role, such as ``bos_token_id``."""
    prefix = "tokenizer.ggml."
    named: dict[str, int] = {}
    for key in (*_END_KEYS, "bos_token_id", "unknown_token_id", "padding_token_id"):
        if prefix + key not in header.metadata:
            continue
        named[key] = header.metadata.integer(prefix + key)
        if not 0 <= named[key] < num_tokens:
            raise ModelLoadError(
                f"{header.path}: {prefix}{key}={named[key]}: must be below the {num_tokens} tokens of the vocabulary; "
                "the file is corrupt: download it again"
            )
    return named


def _merges(header: GgufHeader, vocab: dict[str, int]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for line in header.metadata.strings("tokenizer.ggml.merges"):
        left, _, right = line.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise ModelLoadError(
                f"{header.path}: tokenizer.ggml.merges holds {line!r}: must be two tokens with a space between that "
                "join to a third; the file is corrupt: download it again"
            )
        merges.append((left, right))
    return merges


def _pre_tokenizer(header: GgufHeader, pre: str) -> PreTokenizer:
    if pre in _GPT2_SPLITS:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if pre in _SPLITS:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLITS[pre]), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    raise ModelLoadError(
        f"{header.path}: tokenizer.ggml.pre={pre!r} is not supported; supported are "
        f"{', '.join(SUPPORTED_PRE_TOKENIZERS)}; load the model's Hugging Face directory instead"
    )
