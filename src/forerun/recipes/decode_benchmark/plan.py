"""What is measured: the prompts, the engines, and how many of the prompts each engine gets."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forerun.core.errors import ConfigError

GREEDY = 0.0
SAMPLED = 0.7
_WORKER = "forerun.recipes.decode_benchmark.worker"
_PROMPT_FIELDS = frozenset({"id", "kind", "prompt"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One line of the prompt file.

    Attributes:
        id: Unique name.
        kind: What is asked for: chat, code, maths, summarising or writing.
        prompt: The user's message, without chat template.
    """

    id: str
    kind: str
    prompt: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """One way of decoding that is measured.

    Attributes:
        name: Short name in result files.
        label: What it is, for tables.
        command: Starts its worker.
        cores: What it declares to use, and is held to.
        num_threads: Most threads of each of its processes (SSD: one on the target's core, one on the drafter's).
        is_own: Whether it is ours (its outputs must then equal those of our other methods).
        num_greedy: Prompts it gets greedily, the first in the file; ``None``: all.
        num_sampled: The same at temperature 0.7.
    """

    name: str
    label: str
    command: tuple[str, ...]
    cores: tuple[int, ...]
    num_threads: int = 1
    is_own: bool = False
    num_greedy: int | None = None
    num_sampled: int | None = None

    def takes(self, prompt_index: int, temperature: float) -> bool:
        """Return whether the engine is measured on this prompt at this temperature."""
        limit = self.num_greedy if temperature == GREEDY else self.num_sampled
        return limit is None or prompt_index < limit


def load_prompts(path: Path) -> list[Prompt]:
    """Read a prompt file: JSON lines with ``id``, ``kind`` and ``prompt``.

    Args:
        path: The file. Its order matters: an engine that gets n prompts gets the first n, so kinds should alternate.

    Raises:
        ConfigError: The file can't be read, a line has other fields, or an id occurs twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts {path}: cannot be read ({error}); name a file of JSON lines") from error
    prompts = [_prompt(line, where=f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    ids = [prompt.id for prompt in prompts]
    if not prompts:
        raise ConfigError(f"--prompts {path}: holds no prompt; write one JSON object with id, kind and prompt a line")
    if repeated := sorted({name for name in ids if ids.count(name) > 1}):
        raise ConfigError(f"--prompts {path}: the id {repeated[0]!r} occurs more than once; make each id unique")
    return prompts


def _prompt(line: str, *, where: str) -> Prompt:
    try:
        fields: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: is not JSON ({error}); write one object a line") from error
    if (
        not isinstance(fields, dict)
        or fields.keys() != _PROMPT_FIELDS
        or not all(isinstance(value, str) and value for value in fields.values())
    ):
        raise ConfigError(f"{where}: must be an object with the non-empty texts id, kind and prompt, and nothing else")
    return Prompt(**fields)


def own_engines(*, cores: Sequence[int], target: str, draft: str) -> list[Engine]:
    """Return our methods.

    Args:
        cores: Two cores; a method for one core gets the first.
        target: As for :class:`forerun.LLM`.
        draft: As for :class:`forerun.LLM`.

    Raises:
        ConfigError: There are fewer than two cores.
    """
    one, two = tuple(cores[:1]), tuple(cores[:2])
    if len(two) < 2:
        raise ConfigError(f"cores={tuple(cores)}: the benchmark compares methods on two cores; give the process two")

    def engine(
        name: str, label: str, method: str, *, on: tuple[int, ...], num_threads: int = 1, **share: Any
    ) -> Engine:
        # ``auto`` may turn the drafter's core into one more thread of the target.
        asked = 1 if method == "auto" else num_threads
        options = ("--method", method, "--threads", str(asked), "--target", target, "--draft", draft)
        command = (sys.executable, "-m", _WORKER, *options, "--cores", ",".join(map(str, on)))
        return Engine(name=name, label=label, command=command, cores=on, num_threads=num_threads, is_own=True, **share)

    return [
        engine("ar", "AR, 1 core", "none", on=one, num_sampled=25),
        engine("sd", "SD, 1 core", "sequential", on=one, num_sampled=25),
        engine("ssd", "SSD, 1 target core + 1 draft core", "ssd", on=two),
        engine("auto", "auto, 2 cores", "auto", on=two, num_threads=2, num_sampled=25),
        engine("ar-2", "AR, 2 threads", "none", on=two, num_threads=2, num_sampled=25),
        engine("sd-2", "SD, 2 threads", "sequential", on=two, num_threads=2, num_sampled=25),
    ]


def peer_engines(
    *, folder: Path, cores: Sequence[int], gguf: Path, huggingface: Path, llama_python: Path | None
) -> list[Engine]:
    """Return the engines of other projects, each with 1 and 2 threads, plain and with its own prompt look-up.

    Args:
        folder: Holds their workers, ``llama_cpp_worker.py`` and ``transformers_worker.py``.
        cores: Two cores.
        gguf: The target, for llama.cpp.
        huggingface: The same weights as a Hugging Face directory, for transformers.
        llama_python: The interpreter that has llama-cpp-python; ``None``: this one.

    Raises:
        ConfigError: A worker is missing.
    """
    peers = [
        ("llama.cpp", folder / "llama_cpp_worker.py", gguf, str(llama_python or sys.executable), (20, 10)),
        ("transformers", folder / "transformers_worker.py", huggingface, sys.executable, (10, 0)),
    ]
    engines: list[Engine] = []
    for name, script, model, python, (num_greedy, num_sampled) in peers:
        if not script.is_file():
            raise ConfigError(f"--peers {folder}: has no {script.name}; name the folder benchmarks/peers of a checkout")
        for num_threads in (1, 2):
            on = tuple(cores[:num_threads])
            options = ("--model", str(model), "--cores", ",".join(map(str, on)), "--threads", str(num_threads))
            threads = f"{num_threads} thread{'s'[: num_threads - 1]}"
            for mode in ("plain", "lookup"):
                shown = threads if mode == "plain" else f"{threads}, prompt look-up"
                engines.append(
                    Engine(
                        name=f"{name}-{num_threads}" if mode == "plain" else f"{name}-{num_threads}-lookup",
                        label=f"{name}, {shown}",
                        command=(python, str(script), *options, "--mode", mode),
                        cores=on,
                        num_threads=num_threads,
                        num_greedy=num_greedy,
                        num_sampled=num_sampled if mode == "plain" else 0,
                    )
                )
    return engines
