"""The run: start every engine, ask them in turn prompt by prompt, and append one record for each measurement."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from forerun.core.env import available_cores
from forerun.core.errors import ConfigError
from forerun.recipes.decode_benchmark.channel import Reply, Request
from forerun.recipes.decode_benchmark.engine_process import EngineProcess, Failure
from forerun.recipes.decode_benchmark.machine import busy_s, machine_manifest, read_bandwidth
from forerun.recipes.decode_benchmark.plan import GREEDY, Engine, Prompt

Record = dict[str, Any]

_LOAD_TIMEOUT_S: Final = 180.0
_REPLY_TIMEOUT_S: Final = 120.0
_NUM_STARTS: Final = 3
_NUM_WARM_UP_TOKENS: Final = 32
_STARTED_FRESH: Final = ("ar", "ssd", "auto")
WARM_UP_MESSAGE: Final = "Tell me how a letter travels from one town to another."


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A prompt as token ids, chat template included."""

    prompt: Prompt
    token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Everything a run measures.

    Attributes:
        engines: In the order of the tables.
        prompts: In the order of the file.
        warm_up: Token ids of a prompt that is not among them.
        temperatures: Each prompt is measured at each of these.
        max_tokens: Most tokens of an output.
        eos_ids: Tokens that end an output.
        time_limit_s: No prompt is begun after this long.
        facts: What the header of the records says besides: models, sizes, settings.
    """

    engines: Sequence[Engine]
    prompts: Sequence[Encoded]
    warm_up: tuple[int, ...]
    temperatures: Sequence[float]
    max_tokens: int
    eos_ids: tuple[int, ...]
    time_limit_s: float
    facts: Mapping[str, Any]

    def fingerprint(self) -> str:
        """Return a hash of what must be the same for records of two sessions to belong together."""
        content = {
            "prompts": [(encoded.prompt.id, encoded.token_ids) for encoded in self.prompts],
            "engines": [(engine.name, engine.cores) for engine in self.engines],
            "temperatures": list(self.temperatures),
            "max_tokens": self.max_tokens,
            "facts": dict(self.facts),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def request(self, index: int, *, temperature: float) -> Request:
        """Return the request for one prompt; its index is the seed, the same for every engine."""
        token_ids = self.prompts[index].token_ids
        return self._request(token_ids, temperature=temperature, max_tokens=self.max_tokens, seed=index)

    def warm_up_request(self, *, temperature: float, max_tokens: int) -> Request:
        """Return a request whose answer does not count."""
        return self._request(self.warm_up, temperature=temperature, max_tokens=max_tokens, seed=0)

    def _request(self, token_ids: tuple[int, ...], *, temperature: float, max_tokens: int, seed: int) -> Request:
        return Request(
            prompt_token_ids=token_ids,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            eos_ids=self.eos_ids,
        )


class RecordFile:
    """The records of a run in memory, and line by line in a JSONL file where one is named.

    Args:
        path: The file; ``None`` keeps records in memory only.
        fingerprint: Of the workload.
        resume: Take up the records of an earlier session that measured the same workload.

    Raises:
        ConfigError: The file is there and ``resume`` is off, or it belongs to another workload, or can't be used.
    """

    def __init__(self, path: Path | None, *, fingerprint: str, resume: bool) -> None:
        self._path = path
        self.records: list[Record] = []
        if path is None or not path.exists():
            return
        if not resume:
            raise ConfigError(f"--measurements {path}: is there already; add --resume to go on with it, or remove it")
        self.records = read_records(path)
        if any(record.get("fingerprint", fingerprint) != fingerprint for record in self.records):
            raise ConfigError(
                f"--measurements {path}: was measured with other prompts, engines, models or settings; name another "
                "file, or remove it"
            )
        # A last line that was cut short must not run into the first one that is appended.
        whole = path.with_suffix(f"{path.suffix}.whole")
        whole.write_text("".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8")
        whole.replace(path)

    def append(self, record_kind: str, /, **fields: Any) -> None:
        """Add a record; on disk before this returns.

        Args:
            record_kind: ``session``, ``engine``, ``measurement``, ``memory``, ``start``, ``bandwidth``,
                ``failure`` or ``end``.
            **fields: JSON types.
        """
        record = {"record": record_kind, **fields}
        self.records.append(record)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def done(self) -> set[tuple[str, str, float]]:
        """Return what is measured already, as (engine, prompt id, temperature)."""
        return {
            (record["engine"], record["prompt_id"], record["temperature"])
            for record in self.records
            if record["record"] == "measurement"
        }


def read_records(path: Path) -> list[Record]:
    """Read a record file; a last line cut short by an interruption is left out.

    Raises:
        ConfigError: The file can't be read, or another line is no record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--measurements {path}: cannot be read ({error}); name another file") from error
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            record["record"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise ConfigError(f"--measurements {path}:{number}: is no record ({error}); remove the file") from error
        records.append(record)
    return records


def run_workload(workload: Workload, file: RecordFile, *, report: Callable[[str], None]) -> None:
    """Measure what the file lacks.

    Args:
        workload: What to measure.
        file: Where records go.
        report: Gets a line of progress now and then.

    Effects:
        Starts and ends the engines' processes. An engine that fails is recorded and left out from there on.
    """
    began_at = time.perf_counter()
    core = available_cores()[0]
    file.append("session", fingerprint=workload.fingerprint(), manifest=machine_manifest(), facts=dict(workload.facts))
    file.append("bandwidth", bytes_per_s=read_bandwidth(core))
    _measure_starts(workload, file, report=report)
    with ExitStack() as stack:
        running = dict(_started(workload, file, stack, report=report))
        half = len(workload.prompts) // 2
        for index, encoded in enumerate(workload.prompts):
            if time.perf_counter() - began_at > workload.time_limit_s:
                report(f"time limit reached after {index} of {len(workload.prompts)} prompts")
                break
            if index == half:
                file.append("bandwidth", bytes_per_s=read_bandwidth(core))
            _measure_prompt(workload, file, running, index=index, encoded=encoded)
            report(_progress(file, index=index, encoded=encoded, workload=workload))
        for name, process in running.items():
            file.append("memory", engine=name, processes=[asdict(memory) for memory in process.memory()])
    file.append("bandwidth", bytes_per_s=read_bandwidth(core))
    file.append("end", seconds=time.perf_counter() - began_at)


def _measure_starts(workload: Workload, file: RecordFile, *, report: Callable[[str], None]) -> None:
    """Time fresh processes from their start to their first token; the first of each only warms the files."""
    have = {record["engine"] for record in file.records if record["record"] == "start"}
    for engine in workload.engines:
        if engine.name not in _STARTED_FRESH or engine.name in have:
            continue
        for attempt in range(_NUM_STARTS + 1):
            request = workload.warm_up_request(temperature=GREEDY, max_tokens=1)
            with EngineProcess(engine) as process:
                hello = process.hello(timeout_s=_LOAD_TIMEOUT_S)
                reply = hello if isinstance(hello, Failure) else process.ask(request, timeout_s=_REPLY_TIMEOUT_S)
                ended_at = time.perf_counter()
            if isinstance(reply, Failure):
                break  # it fails again where engines are started to stay, and is reported there
            if attempt:
                seconds = ended_at - process.started_at
                file.append("start", engine=engine.name, seconds=seconds)
                report(f"{engine.name}: {seconds:.1f} s from start to first token")


def _started(
    workload: Workload, file: RecordFile, stack: ExitStack, *, report: Callable[[str], None]
) -> Iterator[tuple[str, EngineProcess]]:
    """Start and warm up each engine in turn; yield those that answer."""
    for engine in workload.engines:
        process = stack.enter_context(EngineProcess(engine))
        answer: Mapping[str, Any] | Reply | Failure = process.hello(timeout_s=_LOAD_TIMEOUT_S)
        hello = answer
        for temperature in workload.temperatures:
            if not isinstance(answer, Failure):
                request = workload.warm_up_request(temperature=temperature, max_tokens=_NUM_WARM_UP_TOKENS)
                answer = process.ask(request, timeout_s=_REPLY_TIMEOUT_S)
        if isinstance(answer, Failure):
            file.append("failure", engine=engine.name, is_own=engine.is_own, reason=answer.reason)
            report(f"{engine.name}: left out: {answer.reason}")
            process.close()
            continue
        facts = hello if isinstance(hello, Mapping) else {}
        description = {"label": engine.label, "cores": list(engine.cores), "is_own": engine.is_own}
        file.append("engine", engine=engine.name, **description, facts=dict(facts))
        report(f"{engine.name}: ready")
        yield engine.name, process


def _measure_prompt(
    workload: Workload, file: RecordFile, running: dict[str, EngineProcess], *, index: int, encoded: Encoded
) -> None:
    done = file.done()
    for temperature in workload.temperatures:
        names = list(running)
        # Each prompt begins with another engine, so that none always follows the same one.
        shift = index % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            process = running[name]
            key = (name, encoded.prompt.id, temperature)
            if key in done or not process.engine.takes(index, temperature):
                continue
            request = workload.request(index, temperature=temperature)
            fields = _measure(process, request)
            if isinstance(fields, Failure):
                file.append("failure", engine=name, is_own=process.engine.is_own, reason=fields.reason)
                running.pop(name).close()
                continue
            file.append(
                "measurement",
                engine=name,
                prompt_id=encoded.prompt.id,
                kind=encoded.prompt.kind,
                temperature=temperature,
                num_prompt_tokens=len(encoded.token_ids),
                **fields,
            )


def _measure(process: EngineProcess, request: Request) -> Record | Failure:
    cores = available_cores()
    busy_before, own_before, began_at = busy_s(cores), process.cpu_s(), time.perf_counter()
    reply = process.ask(request, timeout_s=_REPLY_TIMEOUT_S)
    wall_s = time.perf_counter() - began_at
    if isinstance(reply, Failure):
        return reply
    cpu_s = process.cpu_s() - own_before
    return {
        "num_tokens": len(reply.token_ids),
        "first_token_s": reply.first_token_s,
        "decode_s": reply.decode_s,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "foreign_cpu_s": max(0.0, busy_s(cores) - busy_before - cpu_s),
        "output_digest": hashlib.sha256(json.dumps(reply.token_ids).encode()).hexdigest()[:16],
        "metrics": dict(reply.metrics) if reply.metrics is not None else None,
    }


def _progress(file: RecordFile, *, index: int, encoded: Encoded, workload: Workload) -> str:
    speeds = {
        record["engine"]: (record["num_tokens"] - 1) / record["decode_s"]
        for record in file.records
        if record["record"] == "measurement"
        and record["prompt_id"] == encoded.prompt.id
        and record["temperature"] == GREEDY
        and record["decode_s"] > 0
    }
    shown = "  ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    return f"{index + 1}/{len(workload.prompts)} {encoded.prompt.id}  tokens/s greedy: {shown}"
