"""Rules about the source files themselves: size, names, layers, and no trace of the machine they were written on."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON_FILES = sorted(
    file for folder in ("src", "tests", "benchmarks", "scripts") for file in (ROOT / folder).rglob("*.py")
)
SOURCE_FILES = [file for file in PYTHON_FILES if file.is_relative_to(ROOT / "src")]
MAX_LINES = 600
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "legacy", "tmp", "stuff"}


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_no_file_is_longer_than_the_cap():
    lengths = {relative(file): len(file.read_text().splitlines()) for file in PYTHON_FILES}
    assert lengths
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_no_module_has_a_name_that_says_nothing():
    named = {part for file in PYTHON_FILES for part in file.relative_to(ROOT).with_suffix("").parts}
    assert named & FORBIDDEN_NAMES == set()
    assert [name for name in named if re.search(r"_v\d+$", name)] == []


@pytest.mark.parametrize("file", SOURCE_FILES, ids=relative)
def test_source_file_keeps_the_rules_ruff_has_no_word_for(file: Path):
    tree = ast.parse(file.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "__future__" not in {node.module for node in imports}, "it defeats checks of dataclass annotations"
    assert re.search(r"\b(TODO|FIXME|XXX|HACK)\b", file.read_text()) is None


def test_every_package_folder_is_a_package():
    folders = {file.parent for file in SOURCE_FILES}
    assert [relative(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


@pytest.mark.slow
def test_layers_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    finished = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stdout


def test_locks_name_no_torch_build_no_index_and_no_path():
    for name in ("lock.txt", "dev.txt"):
        pins = [
            line
            for line in (ROOT / "requirements" / name).read_text().splitlines()
            if not line.lstrip().startswith("#")
        ]
        assert len(pins) > 20
        pin = r'[a-z0-9-]+==[0-9a-z.]+( ; python_version < "[0-9.]+")?'
        bad = [line for line in pins if not re.fullmatch(pin, line)]
        assert [line for line in bad if line] == [], "a lock holds pins only, some for older Pythons"
        assert [line for line in pins if re.match(r"(torch|triton|nvidia|cuda)", line)] == []


def test_torch_is_pinned_alone():
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+\n", (ROOT / "requirements" / "torch.txt").read_text())
