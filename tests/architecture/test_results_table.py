"""The README's numbers: made from the committed result file, and from nothing else."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "make_results_table.py"
PAGE = "# Title\n\n<!-- results:begin -->\nold\n<!-- results:end -->\n\nThe end.\n"


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("make_results_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def summary() -> dict:
    speeds = {"ar": 40.0, "ssd": 100.0}
    return {
        "machine": {"cpu_model": "Some CPU", "num_available_cores": 2, "started_at": "2026-01-02T03:04:05+00:00"}
        | {"git_revision": "0123456789abcdef"},
        "settings": {"max_tokens": 128},
        "num_prompts_measured": 65,
        "engines": {"ar": {"label": "AR, 1 core"}, "ssd": {"label": "SSD, 2 cores"}},
        "identical_outputs": {"greedy": {"num_identical": 64, "num_compared": 65}},
        "greedy": {
            "engines": {
                name: {"tokens_per_s": speed, "acceptance_rate": 0.5 if name == "ssd" else 0.0}
                | {"mean_acceptance_length": 3.25, "cache_hit_rate": 0.875}
                for name, speed in speeds.items()
            },
            "speedups": {"ssd / ar": {"value": 2.5, "low": 2.25, "high": 2.75}},
        },
        "sampled": {"engines": {"ssd": {"tokens_per_s": 90.0}}},
        "bars": [
            {"name": "Speed", "direction": "at least", "required": 1.8, "value": 2.5, "note": "aim", "verdict": "met"},
            {"name": "Memory", "direction": "at most", "required": 1.0, "value": None, "note": ""}
            | {"verdict": "not measured"},
        ],
    }


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_readme_says_what_the_committed_results_say():
    finished = run("--check")
    assert finished.returncode == 0, finished.stderr


def test_table_shows_speeds_ratios_rates_and_bars(table):
    section = table.results_section(summary())
    assert "| AR, 1 core | 40.0 | 1 | – | – | – | – |" in section
    assert "| SSD, 2 cores | 100.0 | 2.50 (2.25 to 2.75) | 90.0 | 50% | 3.25 | 88% |" in section
    assert "| Speed | ≥ 1.8 | 2.50 (aim) | met |" in section
    assert "| Memory | ≤ 1 | – | not measured |" in section
    assert "64 of 65 prompts" in section
    assert "Some CPU, 2 cores, 2026-01-02, revision 0123456789." in section


def test_only_the_text_between_the_markers_changes(table):
    made = table.replace_section(PAGE, "new")
    assert made == PAGE.replace("old", "new")
    assert table.replace_section(made, "new") == made


BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


@pytest.mark.parametrize("page", ["no marker", BEGIN, END + BEGIN, PAGE + PAGE])
def test_page_without_its_two_markers_is_refused(table, page):
    with pytest.raises(ValueError, match="once each"):
        table.replace_section(page, "new")


def test_check_fails_until_the_page_is_rewritten(tmp_path):
    page, results = tmp_path / "README.md", tmp_path / "decode.json"
    page.write_text(PAGE)
    results.write_text(json.dumps(summary()))
    files = ("--page", page, "--results", results)
    assert run("--check", *files).returncode == 1
    assert page.read_text() == PAGE
    assert run(*files).returncode == 0
    assert run("--check", *files).returncode == 0


def test_without_a_result_the_page_says_so(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(PAGE)
    assert run("--page", page, "--results", tmp_path / "absent.json").returncode == 0
    assert "No result is committed yet" in page.read_text()
