"""The commands as a user starts them, on the embedded model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from forerun.cli.main import main
from forerun.models.draft import MANIFEST_FILE, default_draft_path

pytestmark = [pytest.mark.slow, pytest.mark.model]


def forerun(*argv: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    program = "from forerun.cli.main import main; import sys; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *argv], input=typed, capture_output=True, text=True, timeout=240, check=False
    )


def test_generate_answers_a_question():
    finished = forerun(
        "generate", "What is the capital of France?", "--method", "none", "--temperature", "0", "--max-tokens", "12"
    )
    assert finished.returncode == 0, finished.stderr
    assert "Paris" in finished.stdout


def test_chat_answers_every_line_of_a_pipe(tmp_path: Path):
    file = tmp_path / "chat.json"
    typed = "What is the capital of France?\n/method sequential\nAnd of Italy?\n"
    argv = f"chat --method none --draft ngram --temperature 0 --max-tokens 16 --json {file}"
    finished = forerun(*argv.split(), typed=typed)
    assert finished.returncode == 0, finished.stderr
    first, second = json.loads(file.read_text())["turns"]
    assert "Paris" in first["text"]
    assert (first["metrics"]["method"], second["metrics"]["method"]) == ("none", "sequential")
    assert second["text"]


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_race_without_a_draft_model_has_identical_outputs(tmp_path: Path, temperature: str):
    """In this process: that the command starts in one of its own, other tests show."""
    file = tmp_path / "race.json"
    argv = f"race --methods ar,sd --draft ngram --num-prompts 1 --max-tokens 24 --temperature {temperature}"
    assert main([*argv.split(), "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert written["identical"] is True
    assert all(len(prompt["outputs"]["sd"]["token_ids"]) == 24 for prompt in written["prompts"])


@pytest.mark.skipif(
    not (default_draft_path() / MANIFEST_FILE).exists(),
    reason="the draft is trained, not written: train-draft makes it",
)
def test_race_of_all_three(tmp_path: Path):
    file = tmp_path / "race.json"
    finished = forerun("race", "--num-prompts", "2", "--max-tokens", "32", "--json", str(file))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    written = json.loads(file.read_text())
    assert written["identical_greedy"] is True
    assert set(written["methods"]) == {"ar", "sd", "ssd"}
    assert written["methods"]["ssd"]["mean_acceptance_length"] > 1
    assert written["warnings"] == []


def test_a_missing_model_is_one_line_and_status_2():
    finished = forerun("generate", "x", "--target", "absent.gguf")
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    assert "absent.gguf" in finished.stderr
