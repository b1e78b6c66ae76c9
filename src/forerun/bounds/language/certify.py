"""Certify a byte-level language model: fit, round, code; decode, score and bound elsewhere; write."""

import hashlib
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from forerun.bounds.certificate import ask_verifier, write_certificate
from forerun.bounds.language import verifier
from forerun.bounds.language.fit import FitConfig, fit_message
from forerun.bounds.language.grid import LanguageGrid
from forerun.bounds.language.message import encode_language_message
from forerun.bounds.language.task import LanguageTask
from forerun.bounds.ledger import LedgerLine
from forerun.bounds.pac_bayes import complexity_nats
from forerun.core.errors import CertificateError, ConfigError

Level = Literal["token", "document"]
UNIFORM_BITS: Final = 8.0
"""Score of a byte under the uniform law: a bound that is no less says nothing."""

_TOKEN_PRICE, _TOKEN_PRICE_BYTES = 1e-5, 8e6
_DOCUMENT_PRICE: Final = 8.0
_LEAST_BITS: Final = 25
"""Of the four choices, and of three lists of zeros by their adaptive coins."""
_WHY: Final = {
    "smoothings": "one of the grid's shares of the uniform law",
    "weight_steps": "one of the grid's steps of a weight",
    "vote_steps": "one of the grid's steps of a vote",
    "bias_steps": "one of the grid's steps of a bias",
    "weights": "weights of the contexts, by themselves and by selector",
    "votes": "what a state of the counts votes",
    "biases": "biases by partial byte",
}
_FREE: Final = (
    ("architecture, contexts", "fixed by the format"),
    ("counts", "made from the document's own bytes, as it is read"),
    ("centres", "scores of earlier bytes: known before the byte they are for"),
    ("optimiser, passes, price", "the bound holds for all messages at once"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelBound:
    """One statement, in bits per byte.

    Attributes:
        score: Measured.
        bound: At most this, as the level says.
        is_vacuous: Whether that is no less than 8, the uniform law's.
    """

    score: float
    bound: float
    is_vacuous: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageResult:
    """What a language certificate says, and what stands beside it.

    Attributes:
        level: Which statement the model was made for.
        num_bytes: Of the training text.
        num_documents: Of the training text.
        code_length_bits: -log2 of the message's probability.
        message_bytes: Size of the coded message.
        delta: Probability that either statement fails.
        token: About bytes redrawn at the observed places.
        document: About another document.
        holdout: The same of text that was not trained on, with a delta of its own; ``None`` where there is none.
        ledger: Every cost.
        data_sha256: Digest of the training text.
        grid_sha256: Digest of the grid.
    """

    level: Level
    num_bytes: int
    num_documents: int
    code_length_bits: float
    message_bytes: int
    delta: float
    token: LevelBound
    document: LevelBound
    holdout: dict[str, Any] | None
    ledger: tuple[LedgerLine, ...]
    data_sha256: str
    grid_sha256: str

    def as_json(self) -> dict[str, Any]:
        """Return every number."""
        return asdict(self)


def default_fit(task: LanguageTask, level: Level) -> FitConfig:
    """Return how to fit for a statement.

    A message of K bits raises the token-level bound by about sqrt(2 v K ln 2 / N), v being the variance of the score;
    the document-level one by about 8 K ln 2 / n. The price of a bit is the derivative, taken at the K usual for N.

    Args:
        task: The text, whose size decides.
        level: The statement to make small.
    """
    if level == "token":
        return FitConfig(bit_price=_TOKEN_PRICE * (_TOKEN_PRICE_BYTES / len(task.train.text)) ** 0.75)
    return FitConfig(bit_price=_DOCUMENT_PRICE * math.log(2) / len(task.train), by_document=True)


def affordable_bits(task: LanguageTask, *, delta: float) -> float:
    """Return the length of a message with which the token-level bound just reaches 8, if every score were 0.

    Args:
        task: The text and the grid.
        delta: Failure probability.

    Raises:
        ConfigError: delta is out of range.
    """
    nats = complexity_nats(code_length_bits=0.0, delta=delta / 2) + math.log(len(task.grid.rates))
    largest = UNIFORM_BITS - math.log2(max(task.grid.smoothings))
    rate = max((rate for rate in task.grid.rates if rate * largest < 1), default=0.0)
    return (UNIFORM_BITS * rate * len(task.train.text) - nats) / math.log(2)


def certify_language(
    task: LanguageTask,
    path: Path,
    *,
    delta: float = 0.05,
    level: Level = "token",
    fit_bytes: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> LanguageResult:
    """Fit, certify and write ``path``.

    Args:
        task: The problem.
        path: The certificate to write.
        delta: Failure probability of both statements together.
        level: The statement to make small; both are made.
        fit_bytes: Bytes to fit on; all of the text is scored and certified. By default what :class:`FitConfig` says.
        report: Told a line about each step.

    Returns:
        The numbers, as the verifier found them in a process of its own.

    Raises:
        ConfigError: delta or ``fit_bytes`` is unusable.
        CertificateError: The verifier can't measure what was coded.
    """
    bits = affordable_bits(task, delta=delta)
    report(f"affordable for a token-level bound below 8: {bits:.0f} bits, were every score 0")
    if bits < _LEAST_BITS:
        raise ConfigError(
            f"num_bytes={len(task.train.text)}: too few for a bound below 8 bits per byte at delta={delta:g}: a model "
            f"may take {max(bits, 0):.0f} bits, the shortest takes {_LEAST_BITS}; give more text"
        )
    config = default_fit(task, level)
    config = config if fit_bytes is None else replace(config, num_bytes=fit_bytes)
    code = encode_language_message(fit_message(task.train.split(), task.grid, config, report=report), task.grid)
    report(f"scoring {len(task.train.text)} bytes with the decoded model, {len(code)} bytes long")
    manifest: dict[str, Any] = {
        "format": verifier.FORMAT,
        "version": 1,
        "task": task.name,
        "grid": task.grid.as_json(),
        "grid_sha256": task.grid.sha256,
        "data_sha256": verifier.data_sha256(task.train.text, task.train.ends),
        "message_sha256": hashlib.sha256(code).hexdigest(),
        "delta": delta,
    }
    found = _measure(task, manifest, code)
    manifest["claims"] = found
    holdout = _holdout(task, code, delta=delta)
    manifest["beside"] = {"level": level, "holdout": holdout}
    write_certificate(path, manifest, code)
    return LanguageResult(
        level=level,
        num_bytes=found["num_bytes"],
        num_documents=found["num_documents"],
        code_length_bits=found["code_length_bits"],
        message_bytes=len(code),
        delta=delta,
        token=_level_bound(found, "token"),
        document=_level_bound(found, "document"),
        holdout=holdout,
        ledger=_ledger_lines(found["ledger_bits"], task.grid, delta=delta),
        data_sha256=manifest["data_sha256"],
        grid_sha256=task.grid.sha256,
    )


def _measure(task: LanguageTask, manifest: dict[str, Any], code: bytes) -> dict[str, Any]:
    """Have the message decoded, scored and bounded in a fresh process; ``forerun verify`` will do just the same."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.zip"
        write_certificate(draft, manifest, code)
        found = ask_verifier(verifier.__file__, draft, task.train, ["--measure"])
    if not found.pop("accepted"):
        raise CertificateError(f"the verifier can't measure the message: {found['reason']}; this is a fault of Forerun")
    return {name: value for name, value in found.items() if name != "reason"}


def _holdout(task: LanguageTask, code: bytes, *, delta: float) -> dict[str, Any] | None:
    """Score the documents that fitting never saw; there the model costs nothing."""
    if task.holdout is None:
        return None
    model = verifier.decode(code, task.grid.as_json())[0]
    found = verifier.measure_model(model, task.holdout.split(), task.grid.as_json(), 0.0, delta)
    sizes = {"num_bytes": len(task.holdout.text), "num_documents": len(task.holdout)}
    return {**sizes, **{level: asdict(_level_bound(found, level)) for level in ("token", "document")}}


def _level_bound(found: dict[str, Any], level: str) -> LevelBound:
    return LevelBound(**{name: found[f"{level}_{name}"] for name in ("score", "bound", "is_vacuous")})


def _ledger_lines(message_bits: dict[str, float], grid: LanguageGrid, *, delta: float) -> tuple[LedgerLine, ...]:
    paid = [LedgerLine(name=name, bits=bits, why=_WHY[name]) for name, bits in message_bits.items()]
    free = [LedgerLine(name=name, bits=0.0, why=why) for name, why in _FREE]
    bounds = [
        LedgerLine(name="rate", bits=math.log2(len(grid.rates)), why="token level: one of the grid's rates"),
        LedgerLine(name="stake", bits=math.log2(len(grid.stakes)), why="document level: one of the grid's stakes"),
        LedgerLine(name="two statements", bits=1.0, why="half of delta each"),
        LedgerLine(name="confidence", bits=-math.log2(delta), why=f"log2(1/delta), delta = {delta:g}"),
    ]
    return (*paid, *free, *bounds)
