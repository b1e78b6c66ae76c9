"""Reading a corpus: a folder, one file of records, a dataset of the Hugging Face hub, or the machine's own text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from forerun.core.errors import CorpusError
from forerun.data.columnar import read_hub_dataset, read_parquet
from forerun.data.document import Document
from forerun.data.standard_library import read_standard_library

DEFAULT_CORPUS: Final = "default"
HUB_PREFIX: Final = "hf:"
TEXT_SUFFIXES: Final = frozenset({".txt", ".md", ".rst", ".text", ".tex", ".html", ".xml", ".py", ".pod"})
"""Files of a folder that are one document each."""

_RECORD_SUFFIXES: Final = frozenset({".jsonl", ".ndjson", ".parquet"})


def read_corpus(source: str, *, text_field: str = "text", license_name: str | None = None) -> Iterator[Document]:
    """Yield the documents of a corpus, in an order that depends on its content only.

    Args:
        source: ``default`` (the Python standard library of this machine), ``hf:OWNER/DATASET`` or
            ``hf:OWNER/DATASET@SPLIT``, a folder, or a text, JSONL or Parquet file.
        text_field: Field of a record that holds the text.
        license_name: Licence of documents whose record has no ``license`` field.

    Yields:
        Documents with some text; empty ones are left out.

    Raises:
        CorpusError: There is no such corpus, it holds no readable document, or a record is not as it should be.
        MissingDependencyError: Parquet or the hub without their packages.
    """
    if source == DEFAULT_CORPUS:
        found = read_standard_library()
    elif source.startswith(HUB_PREFIX):
        rows = read_hub_dataset(source.removeprefix(HUB_PREFIX))
        found = _documents(source, rows, text_field=text_field, license_name=license_name)
    else:
        found = _read_path(Path(source), text_field=text_field, license_name=license_name)
    num_found = 0
    for document in found:
        if document.text.strip():
            num_found += 1
            yield document
    if num_found == 0:
        raise CorpusError(
            f"{source}: holds no text; name a folder with files of the kinds {', '.join(sorted(TEXT_SUFFIXES))}, "
            "or a .jsonl or .parquet file"
        )


def _read_path(path: Path, *, text_field: str, license_name: str | None) -> Iterator[Document]:
    if not path.exists():
        raise CorpusError(
            f"{path}: no such file or folder; name one, or {DEFAULT_CORPUS!r} for this machine's own text"
        )
    if path.is_file():
        yield from _read_file(path, path.name, text_field=text_field, license_name=license_name, is_named=True)
        return
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            yield from _read_file(
                file, name.as_posix(), text_field=text_field, license_name=license_name, is_named=False
            )


def _read_file(
    file: Path, name: str, *, text_field: str, license_name: str | None, is_named: bool
) -> Iterator[Document]:
    suffix = file.suffix.lower()
    if suffix in _RECORD_SUFFIXES:
        rows = read_parquet(file) if suffix == ".parquet" else _read_json_lines(file)
        yield from _documents(name, rows, text_field=text_field, license_name=license_name)
    elif is_named or suffix in TEXT_SUFFIXES:
        yield Document(name=name, text=_read_text(file), license=license_name)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file}: is not UTF-8 ({error.reason}); convert it, or take it out of the corpus") from error


def _read_json_lines(file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{file}:{number}: is not JSON ({error.msg}); each line must be one record") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{file}:{number}: is a {type(record).__name__}; each line must be a JSON object")
        yield record


def _documents(
    name: str, rows: Iterator[dict[str, Any]], *, text_field: str, license_name: str | None
) -> Iterator[Document]:
    for number, row in enumerate(rows, start=1):
        text = row.get(text_field)
        if not isinstance(text, str):
            raise CorpusError(
                f"{name}: record {number} has no text in the field {text_field!r}; it has {', '.join(sorted(row))}; "
                "name the field with --text-field"
            )
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise CorpusError(f"{name}: record {number} has half a surrogate pair, which is no text; take it out")
        own_license = row.get("license")
        yield Document(
            name=f"{name}#{number}", text=text, license=own_license if isinstance(own_license, str) else license_name
        )
