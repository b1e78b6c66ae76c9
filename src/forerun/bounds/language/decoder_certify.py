"""Certify trained decoders: round and code each candidate, decode and score it elsewhere, keep the least bound."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from forerun.bounds.certificate import ask_verifier, write_certificate
from forerun.bounds.language import decoder_verifier
from forerun.bounds.language.decoder_fit import DecoderFitConfig, base_tensors, round_decoders
from forerun.bounds.language.decoder_message import DECODER_GRID, DecoderGrid, DecoderMessage, encode_decoder_message
from forerun.bounds.pac_bayes import complexity_nats
from forerun.core.errors import CertificateError, ConfigError
from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.load import build_decoder, load_checkpoint
from forerun.nn.law_average import Average

_SMOOTHING: Final = 2.0**-9
TASK: Final = "decoder"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenText:
    """A text as tokens of a tokenizer that was learned from it.

    Attributes:
        ids: The tokens.
        num_bytes: Of the text in UTF-8.
    """

    ids: Int64[np.ndarray, " tokens"]
    num_bytes: int

    def save(self, path: Path) -> None:
        """Write the ``.npz`` file that the stand-alone verifier reads."""
        np.savez(path, ids=self.ids, num_bytes=self.num_bytes)

    @property
    def sha256(self) -> str:
        """Digest, as in a certificate."""
        return decoder_verifier.data_sha256(self.ids, self.num_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderCandidate:
    """A model, or an ensemble of models, that may be certified.

    Attributes:
        name: Where it came from.
        decoders: Its members.
        average: How their laws are averaged.
    """

    name: str
    decoders: tuple[Decoder, ...]
    average: Average


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderOptions:
    """What is fixed for all candidates.

    Attributes:
        delta: Failure probability.
        window: Tokens predicted in one window; of the grid's.
        rank: Of an adapter upon the candidate as frozen base; 0 certifies the candidate itself.
        base_is_independent: The user's word that the base was made without the text.
        fit: How to round.
        grid: The options of the message.
    """

    delta: float = 0.05
    window: int = 128
    rank: int = 0
    base_is_independent: bool = False
    fit: DecoderFitConfig = field(default_factory=DecoderFitConfig)
    grid: DecoderGrid = DECODER_GRID

    def __post_init__(self) -> None:
        complexity_nats(code_length_bits=0.0, delta=self.delta)
        self.grid.place("windows", self.window)
        self.grid.place("ranks", self.rank)
        if self.rank and not self.base_is_independent:
            raise ConfigError(
                f"rank={self.rank}: an adapter's certificate holds only if its base was made without this text; say so "
                "with --base-is-independent, or leave --rank out to pay for the whole model"
            )


def open_candidate(path: Path) -> DecoderCandidate:
    """Open a run, a model folder or an ensemble.

    Raises:
        ConfigError: It is of a shape that the verifier does not compute.
        ModelLoadError: It can't be loaded.
    """
    checkpoint = load_checkpoint(path)
    members = (checkpoint,) if checkpoint.ensemble is None else checkpoint.ensemble.members
    for member in members:
        _check_plain(member.config, name=str(path))
    average: Average = "probability" if checkpoint.ensemble is None else checkpoint.ensemble.average
    return DecoderCandidate(
        name=str(path), decoders=tuple(build_decoder(member) for member in members), average=average
    )


def certify_decoders(
    candidates: Sequence[DecoderCandidate],
    text: TokenText,
    path: Path,
    options: DecoderOptions,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Certify each candidate and write the certificate with the least bound.

    Choosing is free: every message has its share of one prior, and the bound holds for all of them at once.

    Args:
        candidates: At least one.
        text: What they were trained on, and are certified on.
        path: The certificate to write.
        options: What is common to them.
        report: Told a line about each step.

    Returns:
        The numbers of each candidate under ``candidates``, in order, as the verifier found them in a process of its
        own; ``chosen`` is the name of the one that was written.

    Raises:
        ConfigError: There is no candidate, or one is outside the grid.
        CertificateError: The verifier can't measure what was coded.
    """
    if not candidates:
        raise ConfigError("candidates=(): give at least one model")
    results: list[dict[str, Any]] = []
    best: tuple[float, dict[str, Any], bytes] | None = None
    for candidate in candidates:
        report(f"{candidate.name}: {len(candidate.decoders)} member(s)")
        code = _encode(candidate, text, options, report=report)
        manifest = _manifest(candidate, text, options, code)
        found = _measure(candidate, text, manifest, code, is_adapter=options.rank > 0)
        results.append({"name": candidate.name, "message_bytes": len(code), **found})
        report(
            f"{candidate.name}: {found['token_score']:.4f} bits per token, {found['code_length_bits']:.0f} bits, "
            f"at most {found['token_bound']:.4f} ({found['bits_per_byte_bound']:.4f} bits per byte)"
        )
        if best is None or found["token_bound"] < best[0]:
            best = found["token_bound"], {**manifest, "claims": found}, code
    assert best is not None, "there is at least one candidate"
    _, manifest, code = best
    write_certificate(path, {**manifest, "beside": {"candidates": results}}, code)
    chosen = min(results, key=lambda result: result["token_bound"])
    return {"chosen": chosen["name"], "delta": options.delta, "data_sha256": text.sha256, "candidates": results}


def save_base(path: Path, decoder: Decoder) -> None:
    """Write the ``.npz`` file of a frozen base that the stand-alone verifier reads."""
    tensors: dict[str, Any] = dict(base_tensors(decoder))
    np.savez(path, **tensors)


def _encode(
    candidate: DecoderCandidate, text: TokenText, options: DecoderOptions, *, report: Callable[[str], None]
) -> bytes:
    vocab_sizes = {decoder.config.vocab_size for decoder in candidate.decoders}
    if len(vocab_sizes) > 1 or text.ids.max() >= max(vocab_sizes):
        raise ConfigError(
            f"{candidate.name}: its vocabulary of {sorted(vocab_sizes)} tokens is not that of the text, whose ids go "
            f"up to {text.ids.max()}; give the corpus it was trained on"
        )
    if options.rank and len(candidate.decoders) > 1:
        raise ConfigError(f"{candidate.name}: an adapter has one base, this is an ensemble; name one of its members")
    members = round_decoders(
        list(candidate.decoders),
        text.ids,
        options.grid,
        options.fit,
        window=options.window,
        rank=options.rank,
        report=report,
    )
    message = DecoderMessage(
        smoothing=_SMOOTHING,
        window=options.window,
        average=candidate.average,
        rank=options.rank,
        vocab_size=vocab_sizes.pop(),
        members=members,
    )
    return encode_decoder_message(message, options.grid)


def _manifest(candidate: DecoderCandidate, text: TokenText, options: DecoderOptions, code: bytes) -> dict[str, Any]:
    manifest = {
        "format": decoder_verifier.FORMAT,
        "version": 1,
        "task": TASK,
        "grid": options.grid.as_json(),
        "grid_sha256": options.grid.sha256,
        "data_sha256": text.sha256,
        "message_sha256": hashlib.sha256(code).hexdigest(),
        "delta": options.delta,
    }
    if options.rank:
        manifest["base_sha256"] = decoder_verifier.base_sha256(base_tensors(candidate.decoders[0]))
        manifest["base_is_independent"] = options.base_is_independent
    return manifest


def _measure(
    candidate: DecoderCandidate, text: TokenText, manifest: dict[str, Any], code: bytes, *, is_adapter: bool
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        draft, base, arguments = Path(folder) / "draft.zip", Path(folder) / "base.npz", ["--measure"]
        write_certificate(draft, manifest, code)
        if is_adapter:
            save_base(base, candidate.decoders[0])
            arguments.append(f"--base={base}")
        found = ask_verifier(decoder_verifier.__file__, draft, text, arguments)
    if not found["accepted"]:
        raise CertificateError(f"{candidate.name}: the verifier can't measure it: {found['reason']}")
    return {name: value for name, value in found.items() if name not in {"accepted", "reason"}}


def _check_plain(config: DecoderConfig, *, name: str) -> None:
    plain = DecoderConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_dim=config.hidden_size // config.num_heads,
        max_len=config.max_len,
        norm_eps=decoder_verifier.NORM_EPS,
        rope_theta=decoder_verifier.ROPE_THETA,
    )
    if differing := [key for key, value in asdict(plain).items() if asdict(config)[key] != value]:
        raise ConfigError(
            f"{name}: {', '.join(differing)} is not as in models of 'forerun pretrain train'; the verifier computes no "
            "other decoder"
        )
