"""What is measured: the repository's prompts, other prompt files, and the engines' shares."""

import json
from collections import Counter
from pathlib import Path

import pytest

from forerun.core.errors import ConfigError
from forerun.models.config import DecoderConfig
from forerun.models.layout import bytes_per_pass
from forerun.recipes.decode_benchmark.machine import git_revision, machine_manifest
from forerun.recipes.decode_benchmark.plan import load_prompts, own_engines, peer_engines
from forerun.recipes.decode_benchmark.run import DecodeBenchmarkConfig

ROOT = Path(__file__).parents[3]
PROMPTS = load_prompts(ROOT / "benchmarks" / "prompts.jsonl")
KINDS = {"chat", "code", "maths", "summarising", "writing"}


def test_there_are_enough_prompts_of_each_kind_and_no_two_alike():
    counts = Counter(prompt.kind for prompt in PROMPTS)
    assert counts.keys() == KINDS
    assert min(counts.values()) >= 13
    assert len({prompt.prompt for prompt in PROMPTS}) == len(PROMPTS) >= 64


def test_every_first_five_prompts_have_five_kinds():
    for first in range(0, len(PROMPTS) - 4, 5):
        assert {prompt.kind for prompt in PROMPTS[first : first + 5]} == KINDS


def test_prompts_to_summarise_carry_a_passage():
    for prompt in PROMPTS:
        if prompt.kind == "summarising":
            assert 60 <= len(prompt.prompt.split("\n\n", 1)[1].split()) <= 150, prompt.id


def test_prompts_are_held_out_of_everything_the_package_trains_on():
    sources = "\n".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
    assert [prompt.id for prompt in PROMPTS if prompt.prompt.split("\n\n")[-1][:60] in sources] == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no prompt"),
        (["{"], r":1: is not JSON"),
        (["[1]"], r":1: must be an object"),
        (['{"id": "a", "kind": "chat"}'], r":1: must be an object"),
        (['{"id": "a", "kind": "chat", "prompt": ""}'], r":1: must be an object"),
        (['{"id": "a", "kind": "chat", "prompt": "x"}'] * 2, "'a' occurs more than once"),
    ],
)
def test_a_wrong_prompt_file_says_where(tmp_path, lines, message):
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=message):
        load_prompts(file)


def test_own_engines_declare_the_cores_they_use():
    engines = {engine.name: engine for engine in own_engines(cores=(3, 5, 7), target="default", draft="default")}
    assert {name: engine.cores for name, engine in engines.items()} == {
        "ar": (3,), "sd": (3,), "ssd": (3, 5), "auto": (3, 5), "ar-2": (3, 5), "sd-2": (3, 5),
    }  # fmt: skip
    assert {name for name, engine in engines.items() if engine.num_threads == 2} == {"auto", "ar-2", "sd-2"}
    assert {name for name, engine in engines.items() if "--threads 2" in " ".join(engine.command)} == {"ar-2", "sd-2"}
    assert all(engine.is_own and engine.takes(10**6, 0.0) for engine in engines.values())
    assert engines["ssd"].takes(10**6, 0.7)
    assert [engines["sd"].takes(index, 0.7) for index in (24, 25)] == [True, False]


def test_one_core_is_too_few():
    with pytest.raises(ConfigError, match="two cores"):
        own_engines(cores=(0,), target="default", draft="default")


def test_peers_are_measured_plain_and_with_their_own_draft_mechanism():
    peers = peer_engines(
        folder=ROOT / "benchmarks" / "peers",
        cores=(0, 1),
        gguf=Path("m.gguf"),
        huggingface=Path("hf"),
        llama_python=None,
    )
    assert {engine.name for engine in peers} == {
        f"{name}-{threads}{mode}"
        for name in ("llama.cpp", "transformers") for threads in (1, 2) for mode in ("", "-lookup")
    }  # fmt: skip
    assert not any(engine.is_own for engine in peers)


def test_folder_without_workers_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"has no llama_cpp_worker\.py"):
        peer_engines(folder=tmp_path, cores=(0, 1), gguf=tmp_path, huggingface=tmp_path, llama_python=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 1}, "max_tokens=1: must be >= 2"),
        ({"num_prompts": 0}, "num_prompts=0: must be >= 1"),
        ({"resume": True}, "resume without measurements"),
        ({"llama_python": Path("python")}, "llama_python without peers"),
    ],
)
def test_contradictory_options_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        DecodeBenchmarkConfig(prompts=Path("prompts.jsonl"), **options)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_pass_reads_each_matrix_once_and_the_head_but_not_the_embedding(is_tied):
    config = DecoderConfig(
        family="llama", vocab_size=100, hidden_size=8, intermediate_size=16, num_layers=2, num_heads=2,
        num_kv_heads=1, head_dim=4, max_len=64, tie_embeddings=is_tied,
    )  # fmt: skip
    layer = 8 * 8 + 2 * 4 * 8 + 8 * 8 + 3 * 16 * 8
    assert bytes_per_pass(config, bytes_per_weight=2) == 2 * (2 * layer + 100 * 8)


def test_manifest_names_machine_versions_and_revision():
    manifest = machine_manifest()
    assert manifest["cpu_model"]
    assert manifest["num_available_cores"] >= 1
    assert {"torch", "numpy", "numba"} <= manifest["versions"].keys()
    assert json.dumps(manifest)


def test_a_folder_outside_git_has_no_revision(tmp_path):
    assert git_revision(tmp_path) is None
