"""The soak at its shortest: the real server, drafters killed under it, streams cut off, nonsense in between."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

pytestmark = [pytest.mark.model, pytest.mark.slow]

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


def test_a_short_soak(tmp_path):
    report = tmp_path / "soak.json"
    options = ["--seconds", "4", "--clients", "5", "--kill-every", "1.5", "--prompts", "4", "--tokens", "10"]
    options += ["--context", "96", "--max-num-seqs", "3", "--out", str(report)]
    done = subprocess.run([sys.executable, SOAK, *options], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(report.read_text())
    assert content["passed"]
    assert content["wrong"] == []
    assert content["counts"]["answered"] > 0
    assert content["counts"]["drafters killed"] > 0
