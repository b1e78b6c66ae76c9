"""The soak in short: the real server, drafters killed under it, streams cut off, nonsense in between.

The suite has it for a few seconds. For a minute, with more clients and a look at the memory:

    python -m pytest tests/e2e/test_soak.py --soak-seconds 60
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

pytestmark = [pytest.mark.model, pytest.mark.slow]

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


BRIEF = "--clients 5 --kill-every 1.5 --prompts 4 --tokens 10 --context 96 --max-num-seqs 3"
A_MINUTE = "--clients 12 --kill-every 12 --prompts 10 --tokens 24 --context 160 --max-num-seqs 4"


def test_a_short_soak(tmp_path, request):
    seconds, report = request.config.getoption("--soak-seconds"), tmp_path / "soak.json"
    options = ["--seconds", str(seconds), *(BRIEF if seconds < 60 else A_MINUTE).split(), "--out", str(report)]
    done = subprocess.run([sys.executable, SOAK, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(report.read_text())
    assert content["passed"]
    assert content["wrong"] == []
    assert content["counts"]["answered"] > 0
    assert content["counts"]["drafters killed"] > 0
    assert seconds < 60 or content["memory_growth"] is not None
