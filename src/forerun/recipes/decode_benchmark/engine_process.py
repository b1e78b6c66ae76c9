"""The benchmark's end of the pipe: one engine in one long-lived process, asked in turn and otherwise idle."""

import json
import os
import selectors
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from forerun.recipes.decode_benchmark.channel import Reply, Request
from forerun.recipes.decode_benchmark.plan import Engine

_SOURCE_ROOT = Path(__file__).parents[3]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_MIN_DRAFTER_BYTES = 50 * 10**6
"""A smaller child is Python's own (its resource tracker), not a drafter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An engine gave no reply.

    Attributes:
        reason: What happened, with the last thing it wrote to standard error.
    """

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessMemory:
    """Resident memory of one process of an engine.

    Attributes:
        role: ``target`` for the worker itself, ``drafter`` for a process it started.
        rss_bytes: Now.
        peak_bytes: The most it ever had, where the system tells (Linux); else ``rss_bytes``.
    """

    role: str
    rss_bytes: int
    peak_bytes: int


class EngineProcess:
    """An engine's worker. Use as a context manager, so that no process is left behind.

    Args:
        engine: Which, and how it is started.

    Effects:
        Starts the process. It may still be loading when this returns.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        # A peer may run in an interpreter without our package; the channel module is all it needs of it.
        paths = [str(_SOURCE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {name: str(engine.num_threads) for name in _THREAD_VARIABLES}
        self.started_at = time.perf_counter()
        self._process = subprocess.Popen(
            engine.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment | {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"},
        )
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def hello(self, *, timeout_s: float) -> dict[str, Any] | Failure:
        """Wait until the engine is loaded, and return the facts it states."""
        return self._receive(timeout_s)

    def ask(self, request: Request, *, timeout_s: float) -> Reply | Failure:
        """Have one prompt continued.

        Args:
            request: The prompt and how to continue it.
            timeout_s: A slower engine counts as failed.
        """
        try:
            self._stdin.write(json.dumps(asdict(request)).encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            return Failure(reason=f"{self.engine.name} has ended: {self._last_words()}")
        fields = self._receive(timeout_s)
        if isinstance(fields, Failure):
            return fields
        token_ids = tuple(fields.pop("token_ids"))
        return Reply(token_ids=token_ids, **fields)

    def memory(self) -> list[ProcessMemory]:
        """Return the memory of the worker and of each drafter it started."""
        root, *children = self._tree()
        found = [_memory_of(root, "target")]
        drafters = (_memory_of(child, "drafter") for child in children)
        return found + [memory for memory in drafters if memory.rss_bytes >= _MIN_DRAFTER_BYTES]

    def cpu_s(self) -> float:
        """Return the processor time that the worker and its children have used so far."""
        total = 0.0
        for process in self._tree():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:  # a child that ended between the two calls
                continue
            total += times.user + times.system
        return total

    def close(self) -> None:
        """End the worker: ask by closing its input, then terminate, then kill it and its children."""
        tree = self._tree()
        if self._process.poll() is None:
            self._stdin.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                for process in tree:
                    process.kill()
        psutil.wait_procs(tree, timeout=5)
        for process in tree:
            if process.is_running():
                process.kill()
        self._process.wait()
        self._stdout.close()
        self._log.close()

    @property
    def _stdin(self) -> Any:
        return self._process.stdin

    @property
    def _stdout(self) -> Any:
        return self._process.stdout

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _receive(self, timeout_s: float) -> dict[str, Any] | Failure:
        deadline = time.perf_counter() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(timeout=max(0.0, deadline - time.perf_counter())):
                    return Failure(reason=f"{self.engine.name} gave no reply within {timeout_s:g} s")
                data = os.read(self._stdout.fileno(), 1 << 16)
                if not data:
                    return Failure(reason=f"{self.engine.name} has ended: {self._last_words()}")
                self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote no message"


def _memory_of(process: psutil.Process, role: str) -> ProcessMemory:
    rss = process.memory_info().rss
    status = Path(f"/proc/{process.pid}/status")
    peaks = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")] if status.is_file() else []
    return ProcessMemory(role=role, rss_bytes=rss, peak_bytes=int(peaks[0].split()[1]) * 1024 if peaks else rss)
