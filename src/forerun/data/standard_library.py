"""The default corpus: the Python standard library of this machine, docstrings and all, without its tests."""

import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from forerun.core.errors import CorpusError
from forerun.data.document import Document

_LICENSE: Final = "PSF-2.0"
_LEFT_OUT: Final = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
"""Tests repeat themselves, and installed packages have licences and versions of their own."""


def read_standard_library() -> Iterator[Document]:
    """Yield every module of the standard library as one document, sorted by path.

    The text depends on the Python release, so a corpus built from it is known by its hash, never by this name.

    Raises:
        CorpusError: This Python has its library in an archive, or without sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        file
        for file in sorted(root.rglob("*.py"))
        if _LEFT_OUT.isdisjoint(file.relative_to(root).parts) and file.is_file()
    ]
    if not files:
        raise CorpusError(
            f"default: this Python ({platform.python_version()}) has no sources of its standard library; name a folder "
            "of text instead"
        )
    for file in files:
        try:
            with tokenize.open(file) as opened:
                text = opened.read()
        except (SyntaxError, UnicodeDecodeError):
            continue  # a module that declares no readable encoding: 2to3 ships such fixtures
        name = f"python-{platform.python_version()}/{file.relative_to(root).as_posix()}"
        yield Document(name=name, text=text, license=_LICENSE)
