"""The pages are about this source tree: every module has its line, and links lead somewhere."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "forerun"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"])


def named_modules(page: str) -> list[str]:
    """Return the modules that tables list, as package/module: headings name packages, first cells of rows modules."""
    package, named = "", []
    for line in page.splitlines():
        if line.startswith("#"):
            package = line.lstrip("# ").strip()
        elif row := re.match(r"\| `(\w+)` \| [^|\s]", line):
            named.append(f"{package}/{row[1]}")
    return named


def anchors(page: str) -> set[str]:
    """Return the names under which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_architecture_names_every_module_once_and_no_other():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Modules")[2]
    named = Counter(named_modules(page))
    present = {
        file.relative_to(SOURCE).with_suffix("").as_posix()
        for file in SOURCE.rglob("*.py")
        if not file.name.startswith("__")
    }
    assert present
    assert present - named.keys() == set(), "a module has no line in docs/architecture.md"
    assert named.keys() - present == set(), "docs/architecture.md has a line for a module that does not exist"
    assert [module for module, count in named.items() if count > 1] == []


def test_a_row_counts_only_with_a_description():
    assert named_modules("### core\n| `errors` | the tree |\n| `env` | |\n") == ["core/errors"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path):
    # Images are left out: the race's picture is made from a run.
    links = re.findall(r"(?<!!)\[[^\]]*\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8"))
    for name, anchor in links:
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {name}"
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{page.name}: {name}#{anchor}"
