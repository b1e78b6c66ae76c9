"""Sampled text on disk: shards that are made once, by whichever processes ask for them, and hashed."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from forerun.core.errors import CheckpointError, ConfigError
from forerun.nn.law_average import Average
from forerun.pretraining.ensemble import load_member
from forerun.pretraining.prepared_corpus import PreparedCorpus
from forerun.pretraining.run_store import Run, open_run
from forerun.pretraining.sampling import CHAIN_ROWS, EnsembleSampler, SampledRows, Source, check_source

SAMPLED_FOLDER: Final = ".sampled"
"""In a store of runs; hidden, so that ``RUNS/*`` are runs."""

SHARD_CHAINS: Final = 64
_FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledTextConfig:
    """Which text to sample.

    Attributes:
        num_tokens: How much, in whole rows.
        source: Who writes.
        seed: Root of the draws.
        num_kept: Likeliest tokens kept at each place, at 4 bytes each.
    """

    num_tokens: int
    source: Source = "ensemble"
    seed: int = 0
    num_kept: int = 64

    def __post_init__(self) -> None:
        check_source(self.source)
        for name in ("num_tokens", "num_kept"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")


def sampled_rows(
    corpus: PreparedCorpus,
    store: Path,
    members: Sequence[Run],
    config: SampledTextConfig,
    *,
    average: Average,
    sequence_tokens: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> SampledRows:
    """Return sampled text; what no process has made yet is made here, beside others that ask for the same.

    Args:
        corpus: The members' corpus; only its vocabulary and its hash are used.
        store: Folder of all runs; the text lies in ``.sampled`` there, and more of it adds to what is there.
        members: Whose text it is.
        config: Which text.
        average: Of the members' laws.
        sequence_tokens: Tokens predicted in a row.
        report: Told (shards there, all of them).

    Raises:
        ConfigError: The text is shorter than a row, or a row longer than the members' context.
        CheckpointError: A shard was changed.

    Effects:
        Writes shards, each in one step; an interruption costs the one under way.
    """
    num_rows = config.num_tokens // sequence_tokens
    if num_rows < 1:
        raise ConfigError(f"num_tokens={config.num_tokens}: is less than a row of {sequence_tokens}; sample more")
    identity = _identity(corpus, members, config, average=average, sequence_tokens=sequence_tokens)
    folder = open_run(store / SAMPLED_FOLDER, identity).folder
    num_shards = -(-num_rows // (SHARD_CHAINS * CHAIN_ROWS))
    sampler: EnsembleSampler | None = None

    def make(number: int) -> SampledRows:
        nonlocal sampler
        if sampler is None:
            sampler = EnsembleSampler(
                [load_member(member) for member in members],
                average=average,
                source=config.source,
                end_of_text_id=corpus.manifest.end_of_text_id,
                sequence_tokens=sequence_tokens,
                num_kept=config.num_kept,
            )
        return sampler.chains(number * SHARD_CHAINS, SHARD_CHAINS, seed=config.seed)

    _make_missing(folder, num_shards, make, report=report)
    return SampledRows.concatenate([_read(_path(folder, number)) for number in range(num_shards)]).take(slice(num_rows))


def _identity(
    corpus: PreparedCorpus,
    members: Sequence[Run],
    config: SampledTextConfig,
    *,
    average: Average,
    sequence_tokens: int,
) -> dict[str, Any]:
    """Return what names the text: everything but how much of it."""
    return {
        "kind": "sampled text",
        "format": _FORMAT,
        "config": {name: value for name, value in asdict(config).items() if name != "num_tokens"},
        "teacher": {"average": average, "members": [member.folder.resolve().name for member in members]},
        "sequence_tokens": sequence_tokens,
        "data_sha256": corpus.manifest.data_sha256,
    }


def _make_missing(
    folder: Path, num_shards: int, make: Callable[[int], SampledRows], *, report: Callable[[int, int], None]
) -> None:
    """Make shards that are not there: first those that nobody is at, then wait for the others."""
    for is_waiting in (False, True):
        for number in range(num_shards):
            path = _path(folder, number)
            if not path.is_file():
                with _held(path, is_waiting=is_waiting) as is_mine:
                    if is_mine and not path.is_file():
                        _write(path, make(number))
            report(sum(_path(folder, other).is_file() for other in range(num_shards)), num_shards)


@contextmanager
def _held(path: Path, *, is_waiting: bool) -> Iterator[bool]:
    """Keep other processes from making a shard; the system lets go when this one ends, however it does."""
    with path.with_name(f".{path.stem}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if is_waiting else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _path(folder: Path, number: int) -> Path:
    return folder / f"rows-{number:05}.safetensors"


def _write(path: Path, rows: SampledRows) -> None:
    partial = path.with_name(f".{path.name}.partial")
    save_file(_tensors(rows), partial, metadata={"sha256": _digest(rows)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _read(path: Path) -> SampledRows:
    advice = "delete it, it is sampled anew"
    try:
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get("sha256")
            rows = SampledRows(**{name: file.get_tensor(name) for name in SampledRows.__slots__})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {advice}") from error
    if (found := _digest(rows)) != expected:
        raise CheckpointError(f"{path}: its SHA-256 is {found}, it says {expected}: the file was changed; {advice}")
    return rows


def _tensors(rows: SampledRows) -> dict[str, Any]:
    return {name: getattr(rows, name).contiguous() for name in SampledRows.__slots__}


def _digest(rows: SampledRows) -> str:
    digest = hashlib.sha256()
    for tensor in _tensors(rows).values():
        digest.update(tensor.numpy())
    return digest.hexdigest()
