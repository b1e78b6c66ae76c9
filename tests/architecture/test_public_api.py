"""What `import forerun` promises: its names, and that it is cheap."""

import subprocess
import sys

import pytest

import forerun

HEAVY = ("torch", "numba", "numpy", "transformers", "rich", "tokenizers", "psutil")


def modules_loaded_by(code: str) -> set[str]:
    """Run code in a fresh interpreter and return the heavy packages it imported."""
    report = f"import sys\n{code}\nprint(*sorted(set({HEAVY!r}) & sys.modules.keys()))"
    finished = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, timeout=60)
    return set(finished.stdout.splitlines()[-1].split())


def test_public_names_are_exactly_the_documented_ones():
    assert set(forerun.__all__) == {
        "LLM", "Completion", "Constraint", "ForerunError", "SamplingParams", "SpeculativeConfig", "StreamChunk",
        "__version__",
    }  # fmt: skip
    assert dir(forerun) == sorted(forerun.__all__)


@pytest.mark.parametrize("name", [name for name in forerun.__all__ if name != "__version__"])
def test_every_public_name_is_a_class_of_that_name(name: str):
    value = getattr(forerun, name)
    assert isinstance(value, type)
    assert value.__name__ == name


def test_unknown_name_says_which_exist():
    with pytest.raises(AttributeError, match=r"no attribute 'Llm'.*LLM"):
        _ = forerun.Llm  # pyright: ignore[reportAttributeAccessIssue]


def test_import_loads_nothing_heavy():
    assert modules_loaded_by("import forerun") == set()


def test_building_the_command_line_loads_nothing_heavy():
    assert modules_loaded_by("from forerun.cli.main import build_parser; build_parser().format_help()") == set()


def test_configuration_types_load_no_torch():
    assert "torch" not in modules_loaded_by("from forerun import SpeculativeConfig, Completion")


def test_this_detector_sees_a_heavy_import():
    assert modules_loaded_by("import numpy") == {"numpy"}
