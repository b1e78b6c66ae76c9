"""An ensemble from training to serving: on real text every method emits what decoding without a draft does.

int8 members are bitwise independent of the width of a pass, so equality is certain there. In float32 a near tie of 1e-6
could part two methods: one time in some thousands of such tests.
"""

import json
import sysconfig
from pathlib import Path

import pytest
import torch

from forerun import LLM, SamplingParams
from forerun.cli.main import main
from forerun.core.env import cpu_info
from forerun.pretraining.config import PretrainConfig, ShapeConfig
from forerun.pretraining.ensemble import evaluate_ensemble, write_ensemble
from forerun.pretraining.prepare import PrepareConfig, prepare_corpus
from forerun.pretraining.prepared_corpus import open_corpus
from forerun.pretraining.train import pretrain

pytestmark = pytest.mark.slow
PROMPTS = ["def get_content", "class Parser:\n    ", "import ", "    return self._", "# "]
PARAMS = [
    SamplingParams(temperature=temperature, max_tokens=30, seed=5, ignore_eos=True)
    for temperature in (0.0, 0.9, 0.0, 0.9, 0.5)
]


@pytest.fixture(scope="module", autouse=True)
def _threads_as_before():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two members of one shape and one of another, trained on a package of the standard library; their ensembles."""
    folder = tmp_path_factory.mktemp("pretraining")
    text = folder / "text"
    text.mkdir()
    for file in (Path(sysconfig.get_path("stdlib")) / "email").rglob("*.py"):
        (text / f"{file.stem}.txt").write_text(file.read_text(encoding="utf-8")[:4_000], encoding="utf-8")
    prepare_corpus(str(text), folder / "data", PrepareConfig(vocab_size=300, min_split_tokens=64))
    corpus = open_corpus(folder / "data")
    members = [
        pretrain(
            corpus,
            folder / "runs",
            PretrainConfig(
                shape=ShapeConfig(hidden_size=32, intermediate_size=64, num_layers=num_layers, num_heads=2),
                num_epochs=1,
                sequence_tokens=64,
                unique_tokens=16_000,
                tune_tokens=2_000,
                seed=seed,
            ),
        ).folder
        for seed, num_layers in enumerate((2, 2, 1))
    ]
    result = evaluate_ensemble(members, corpus)
    for average in ("probability", "logit"):
        write_ensemble(folder / average, result, average=average, data_sha256=corpus.manifest.data_sha256)
    (folder / "student").symlink_to(members[2])
    return folder


def outputs(**options) -> list[tuple[int, ...]]:
    with LLM(max_num_seqs=3, **options) as llm:
        completions = llm.generate(PROMPTS, PARAMS)
        assert (llm.last_metrics.num_proposed > 0) == (options["method"] != "none")
    return [completion.token_ids for completion in completions]


@pytest.mark.parametrize(("dtype", "average"), [("auto", "probability"), ("int8", "logit")])
def test_every_method_emits_the_ensembles_tokens(runs, dtype, average):
    if dtype == "int8" and not cpu_info().has_int8_dot:
        pytest.skip("this CPU has no exact int8 products")
    target = str(runs / average)
    expected = outputs(target=target, method="none", dtype=dtype)
    assert len(set(expected)) >= 4
    assert outputs(target=target, method="sequential", draft=str(runs / "student"), dtype=dtype) == expected
    assert outputs(target=target, method="ssd", dtype=dtype) == expected
    assert outputs(target=str(runs / "student"), method="none", dtype=dtype) != expected, "the control"


def test_the_commands_race_and_generate_with_it(runs, tmp_path, capsys):
    report = tmp_path / "race.json"
    target, draft = str(runs / "probability"), str(runs / "student")
    race = f"race --methods ar,ssd --target {target} --draft {draft} --num-prompts 1 --max-tokens 24 --ignore-eos"
    assert main([*race.split(), "--temperature", "0.8", "--json", str(report)]) == 0
    written = json.loads(report.read_text())
    assert written["identical"] is True
    assert set(written["methods"]) == {"ar", "ssd"}
    assert written["prompts"][0]["text"].startswith("def "), "a model without a chat template continues texts"
    capsys.readouterr()
    # A drafter's process, which takes seconds to start, is part of the race above; here it would add nothing.
    generate = ["generate", "--target", target, "--method"]
    assert main([*generate, "sequential", "def parse", "--draft", draft, "--max-tokens", "8"]) == 0
    assert capsys.readouterr().out.strip()
    assert main([*generate, "none", "def parse", "--chat"]) == 2
    assert "no chat template" in capsys.readouterr().err
    assert main([*generate, "none", "def " * 99]) == 2
    assert "the context holds 64" in capsys.readouterr().err
