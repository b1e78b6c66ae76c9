"""The server under load: waiting times and throughput of AR, SD, SSD and auto; writes benchmarks/results/serve.json.

    python benchmarks/bench_serve.py [--llama-python PATH] [--out FILE]      # about half an hour
    python benchmarks/bench_serve.py --levels 1 4 --requests-per-client 2 --open-levels --out runs/serve.json

One server has every method ready, so each request names its own and the methods take turns on the same process: their
ratios are within one run. Every method gets the same prompts, in turns that are short, for a machine's speed drifts.

- closed: `level` clients, each asking again as soon as it is answered; throughput is of the time in which all had
  something to ask.
- shared: the same, where all prompts begin with the same long text, as under one system prompt.
- open: requests come at random times (Poisson), at `level` times the rate that AR serves one at a time. A slow method
  does not slow the load. Waiting times count from when a request was due, not from when it was sent.
- prefix: a long prompt, and others with the same beginning, one at a time: what a hit takes off the time to a token.

A peer is another server with the same model, asked in turn with ours: one that runs (`--peer NAME=URL`), or
llama-cpp-python's or vLLM's, started by the interpreter that has it (`--llama-python`, `--vllm-python`). Needs httpx,
psutil, and a machine that does nothing else. `stolen_share` says what its host withheld: where that is more than
`--max-stolen`, a closed turn of ours is taken again, and of its tries the least disturbed counts, whatever it shows.
All are written down, also of a run that is cut off by Ctrl-C.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import httpx
import psutil
from serve_client import MAX_TOKENS, Subject, ask, closed_load, open_load, summary

from forerun.cli.console import write_json, write_line
from forerun.engine.config import EngineConfig
from forerun.engine.sampling import SamplingParams
from forerun.models.export import save_huggingface
from forerun.models.load import build_decoder, default_model_path, load_checkpoint
from forerun.recipes.manifest import run_manifest

_FOLDER = Path(__file__).resolve().parent
_METHODS = ("none", "auto", "sequential", "ssd")
_OPEN_METHODS = ("none", "auto")
_COUNTERS = (
    "prefill_seconds", "target_seconds", "decode_seconds", "target_rounds", "target_verifications",
    "draft_tokens_proposed", "draft_tokens_accepted", "prefilled_tokens",
)  # fmt: skip
_START_TIMEOUT_S = 400
_MALLOC = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"
_LIBRARY = (
    "You work at the help desk of a public library in a small harbour town. The library has three floors, a reading "
    "room with newspapers, a workshop with tools that can be borrowed, and a garden that is open in summer. It opens "
    "at nine and closes at seven, on Saturdays at four. Members may borrow ten items for four weeks; games for "
    "one. Answer questions in plain words, in at most five sentences, and say so when you don't know something. "
)

Record = dict[str, object]


class Bench:
    """Measures subjects in turn, and keeps the records.

    Args:
        ours: Client of our server.
        peers: Other servers.
        args: Of the command line.
    """

    def __init__(self, ours: httpx.AsyncClient, peers: Sequence[Subject], args: argparse.Namespace) -> None:
        self._ours, self._peers, self._args = ours, tuple(peers), args
        self._order = random.Random(args.seed)
        lines = (_FOLDER / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
        self._texts = [json.loads(line)["prompt"] for line in lines]
        self.records: list[Record] = []

    def _subjects(self, methods: Sequence[str], *, with_peers: bool = False) -> list[Subject]:
        """Return our methods, and peers, in an order that changes.

        Nobody finds another's prompts in the cache: else the first to ask would pay for all.
        """
        ours = [
            Subject(name=method, client=self._ours, extra={"method": method, "return_tokens": True})
            for method in methods
        ]
        peers = self._peers if with_peers else ()
        limits = {"max_tokens": self._args.max_tokens, "length_spread": self._args.length_spread}
        everyone = [replace(subject, **limits) for subject in (*ours, *peers)]
        shuffled = self._order.sample(everyone, len(everyone))
        return [replace(subject, extra=subject.extra | _own_cache()) for subject in shuffled]

    def _prompts(self, number: int, *, seed: int) -> list[str]:
        """Return prompts that begin with words of their own."""
        source = random.Random(seed)
        return [f"Case {source.getrandbits(40):x}. {text}" for text in source.choices(self._texts, k=number)]

    async def run(self) -> None:
        """Measure everything."""
        for subject in self._subjects(_METHODS, with_peers=True):
            await closed_load(subject, self._prompts(3, seed=0), num_clients=2)
        for level in self._args.levels:
            await self._closed(level)
        for level in self._args.shared_levels:
            await self._shared(level)
        solo_s = [
            float(str(record["spent_s"])) / int(str(record["num_requests"]))
            for record in self.records
            if (record["mode"], record["method"], record["level"]) == ("closed", "none", 1)
        ]
        for level in self._args.open_levels if solo_s else ():
            await self._open(level, level / median(solo_s))
        if self._args.prefix_pairs:
            await self._prefix()

    async def _closed(self, level: int) -> None:
        for repeat in range(self._args.repeats):
            prompts = self._prompts(self._num_requests(level), seed=level + 1000 * repeat)
            with_peers = repeat == 0 and level in self._args.peer_levels
            await self._measure_closed("closed", level, repeat, prompts, with_peers=with_peers)

    async def _shared(self, level: int) -> None:
        for repeat in range(self._args.repeats):
            endings = self._prompts(self._num_requests(level), seed=500 + level + 1000 * repeat)
            prompts = [f"{_LIBRARY * 4}{ending}" for ending in endings]
            await self._measure_closed("shared", level, repeat, prompts, with_peers=False)

    def _num_requests(self, level: int) -> int:
        return 8 + round(self._args.requests_per_client * level)

    async def _measure_closed(
        self, mode: str, level: int, repeat: int, prompts: Sequence[str], *, with_peers: bool
    ) -> None:
        for subject in self._subjects(_METHODS, with_peers=with_peers):
            for number in range(self._args.max_tries if subject.client is self._ours else 1):
                before, stolen_s = await self._counters(subject), _stolen_s()
                started_s = time.perf_counter()
                anew = replace(subject, extra=subject.extra | _own_cache())
                timings, full_until_s = await closed_load(anew, prompts, num_clients=level)
                stolen_share = (_stolen_s() - stolen_s) / (time.perf_counter() - started_s)
                record = summary(timings, started_s=started_s, full_until_s=full_until_s)
                shares = self._engine_share(before, await self._counters(subject), record)
                turn = {"repeat": repeat, "try": number, "stolen_share": stolen_share}
                self._keep(mode, level, subject, turn | record | shares)
                if stolen_share <= self._args.max_stolen:
                    break

    async def _open(self, level: int, rate: float) -> None:
        prompts = self._prompts(self._args.open_requests, seed=1000 + level)
        for subject in self._subjects(_OPEN_METHODS):
            started_s = time.perf_counter()
            timings = await open_load(subject, prompts, rate=rate, seed=level)
            self._keep("open", level, subject, summary(timings, started_s=started_s) | {"requests_per_s": rate})

    async def _prefix(self) -> None:
        """Ask long prompts that were never seen, each followed by one with the same beginning."""
        for subject in self._subjects(("none",)):
            brief = replace(subject, max_tokens=2, length_spread=0.0)
            times: dict[str, list[float]] = {"cold": [], "hit": [], "short": []}
            for number in range(self._args.prefix_pairs):
                beginning = f"Desk {number}-{time.time_ns()}. " + _LIBRARY * 8
                for kind, prompt in (
                    ("cold", beginning + "When do you open?"),
                    ("hit", beginning + "May I borrow a saw?"),
                    ("short", f"{time.time_ns()}?"),
                ):
                    timing = await ask(brief, prompt, time.perf_counter())
                    times[kind].append(timing.ttft_s if timing.tokens else float("nan"))
            medians = {f"{kind}_ttft_s": median(values) for kind, values in times.items()}
            saved = 1 - medians["hit_ttft_s"] / medians["cold_ttft_s"]
            self._keep("prefix", 1, subject, {**medians, "saved_share": saved, "num_pairs": self._args.prefix_pairs})

    async def _counters(self, subject: Subject) -> dict[str, float]:
        """Read our server's counters; none of a peer."""
        if subject.client is not self._ours:
            return {}
        lines = (await self._ours.get("/metrics")).text.splitlines()
        found = dict(line.split() for line in lines if line and line[0] != "#" and "{" not in line)
        return {name: float(found[f"forerun_{name}_total"]) for name in _COUNTERS}

    @staticmethod
    def _engine_share(before: dict[str, float], after: dict[str, float], record: Record) -> Record:
        """Return what the engine did meanwhile, and in what share of the time its target did not run."""
        if not before:
            return {}
        change = {name: after[name] - before[name] for name in before}
        spent_s = float(str(record["spent_s"]))
        return {
            "mean_requests_per_round": change["target_verifications"] / max(1.0, change["target_rounds"]),
            "acceptance_rate": change["draft_tokens_accepted"] / max(1.0, change["draft_tokens_proposed"]),
            "draft_tokens_per_verification": change["draft_tokens_proposed"] / max(1.0, change["target_verifications"]),
            "prefill_share": change["prefill_seconds"] / spent_s,
            "draft_and_sampling_share": (change["decode_seconds"] - change["target_seconds"]) / spent_s,
            "overhead_share": 1 - (change["prefill_seconds"] + change["decode_seconds"]) / spent_s,
        }

    def _keep(self, mode: str, level: int, subject: Subject, record: Record) -> None:
        self.records.append({"mode": mode, "level": level, "method": subject.name} | record)
        write_line(json.dumps(self.records[-1]))

    def _rates(self, mode: str, level: int) -> dict[str, list[float]]:
        """Return the tokens per second of each subject, in the order of the repetitions, of the quietest tries."""
        turns: dict[tuple[str, int], Record] = {}
        for record in self.records:
            if (record["mode"], record["level"]) == (mode, level):
                turn = str(record["method"]), int(str(record["repeat"]))
                held = turns.setdefault(turn, record)
                if float(str(record["stolen_share"])) < float(str(held["stolen_share"])):
                    turns[turn] = record
        rates: dict[str, list[float]] = {}
        for (method, _), record in sorted(turns.items()):
            rates.setdefault(method, []).append(float(str(record["tokens_per_s"])))
        return rates

    def findings(self) -> Record:
        """Compare methods at each level measured whole, and each with itself by itself: medians over repetitions."""
        alone = {name: median(rates) for name, rates in self._rates("closed", 1).items()}
        levels = [("closed", level) for level in self._args.levels]
        levels += [("shared", level) for level in self._args.shared_levels]
        whole = [
            (mode, level)
            for mode, level in levels
            if all(len(self._rates(mode, level).get(name, ())) == self._args.repeats for name in _METHODS)
        ]
        return {"levels": [self._finding(mode, level, alone) for mode, level in whole]}

    def _finding(self, mode: str, level: int, alone: Mapping[str, float]) -> Record:
        found = self._rates(mode, level)
        rates = {name: median(values) for name, values in found.items()}
        best = max((name for name in _METHODS if name != "auto"), key=lambda name: rates[name])
        return {
            "mode": mode,
            "level": level,
            "tokens_per_s": rates,
            "best_fixed": best,
            "auto_over_best_fixed": rates["auto"] / rates[best],
            "auto_over_best_fixed_by_repeat": [
                auto / fixed for auto, fixed in zip(found["auto"], found[best], strict=True)
            ],
            "over_ar": {name: rate / rates["none"] for name, rate in rates.items()},
            "over_level_1": {name: rate / alone[name] for name, rate in rates.items() if name in alone},
        }


def _own_cache() -> Record:
    """Return what a request says so that it finds no prompt that was asked before."""
    return {"cache_salt": f"{time.time_ns()}"}


def _stolen_s() -> float:
    """Return the seconds that a processor of this virtual machine, on average, was not given by its host so far."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0)) / (os.cpu_count() or 1)


@contextmanager
def _process(command: Sequence[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([*command], stderr=subprocess.DEVNULL, text=True, **options) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def own_server(num_seqs: int) -> Iterator[str]:
    """Start our server with every method ready, and end it."""
    command = [sys.executable, "-c", "from forerun.cli.main import main; raise SystemExit(main())", "serve"]
    options = ["--port", "0", "--method", "auto", "--max-num-seqs", str(num_seqs), "--max-waiting", "1000"]
    options += ["--max-model-len", "2048"]
    with _process([*command, *options], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert "http://" in line, "the server did not start; run `forerun serve` to see why"
        yield line.split()[-1]


@contextmanager
def _peer_server(name: str, command: Sequence[str], settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Start a peer's server on a free port, wait for it, and end it.

    Args:
        name: Of the peer, for what goes wrong.
        command: Starts it; its port is added.
        settings: Further environment variables.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, **(settings or {})}
    with _process([*command, "--port", str(port)], stdout=subprocess.DEVNULL, env=environment) as server:
        url, deadline_s = f"http://127.0.0.1:{port}", time.monotonic() + _START_TIMEOUT_S
        while True:
            assert server.poll() is None, f"{name}'s server ended at once; see what `{' '.join(command)}` says"
            assert time.monotonic() < deadline_s, f"{name}'s server did not start"
            try:
                httpx.get(f"{url}/v1/models", timeout=5)
            except httpx.HTTPError:
                time.sleep(0.5)
            else:
                break
        yield url


def _llama_command(python: str) -> list[str]:
    """Return how to start llama-cpp-python's server, with as many threads as the machine has cores.

    It answers one request after the other; by default it cuts one off when another comes, which is turned off.
    """
    threads = str(os.cpu_count() or 1)
    command = [python, "-m", "llama_cpp.server", "--model", str(default_model_path()), "--n_ctx", "2048"]
    return [*command, "--n_threads", threads, "--n_threads_batch", threads, "--interrupt_requests", "False"]


def _vllm_command(python: str, folder: Path, max_num_seqs: int) -> list[str]:
    """Return how to start vLLM's server on the same weights in bfloat16, which is what it computes in on a CPU."""
    checkpoint = load_checkpoint(default_model_path())
    save_huggingface(build_decoder(checkpoint), folder, tokenizer=checkpoint.tokenizer)
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", "bfloat16"]
    options = ["--max-model-len", "2048", "--max-num-seqs", str(max_num_seqs), "--gpu-memory-utilization", "0.3"]
    return [*command, *options]


def _vllm_settings(python: str) -> dict[str, str]:
    """Return what vLLM's documentation advises for a CPU: all cores, and the OpenMP and malloc that it likes."""
    preferred = [Path(python).parent.parent / "lib" / "libiomp5.so", Path(_MALLOC)]
    return {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "LD_PRELOAD": ":".join(str(file) for file in preferred if file.exists()),
    }


async def _run(args: argparse.Namespace, url: str, peers: dict[str, str], head: Record) -> None:
    async with AsyncExitStack() as clients:
        limits = httpx.Limits(max_connections=None)
        ours = await clients.enter_async_context(httpx.AsyncClient(base_url=url, timeout=600, limits=limits))
        others = [
            Subject(name=name, client=await clients.enter_async_context(httpx.AsyncClient(base_url=at, timeout=600)))
            for name, at in peers.items()
        ]
        bench = Bench(ours, others, args)
        is_whole = False
        try:
            await bench.run()
            is_whole = True
        finally:
            findings = bench.findings()
            write_json(args.out, head | {"is_whole": is_whole, "records": bench.records, "findings": findings})
        write_line(json.dumps(findings, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="clients of a closed load")
    parser.add_argument("--shared-levels", type=int, nargs="*", default=[4, 16], help="where prompts begin alike")
    parser.add_argument("--requests-per-client", type=float, default=2.5, help="of a closed load; 8 more for all")
    parser.add_argument("--repeats", type=int, default=3, help="times that a closed load comes, each with new prompts")
    parser.add_argument("--open-levels", type=int, nargs="*", default=[2, 4], help="rates, times that of AR alone")
    parser.add_argument("--open-requests", type=int, default=20, help="requests of an open load")
    parser.add_argument("--prefix-pairs", type=int, default=5, help="long prompts, each asked about twice; 0 for none")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="most tokens of an answer")
    parser.add_argument(
        "--length-spread", type=float, default=0.0, help="share of it by which the most of each prompt differ, 0 to 1"
    )
    parser.add_argument("--max-stolen", type=float, default=0.03, help="share of a turn that the host may withhold")
    parser.add_argument("--max-tries", type=int, default=3, help="times that such a turn is taken in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", help="a server of ours that runs already, with every method ready")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL", help="another server, running")
    parser.add_argument("--peer-levels", type=int, nargs="+", default=[1, 4, 16], help="clients of peers, once each")
    parser.add_argument("--llama-python", metavar="PATH", help="interpreter that has llama-cpp-python[server]")
    parser.add_argument("--vllm-python", metavar="PATH", help="interpreter that has vllm-cpu")
    parser.add_argument("--out", type=Path, default=_FOLDER / "results" / "serve.json")
    args = parser.parse_args()
    config = EngineConfig(max_num_seqs=max([*args.levels, *args.shared_levels]), max_model_len=2048)
    manifest = run_manifest(
        engine=config, sampling=SamplingParams(temperature=0, max_tokens=args.max_tokens, seed=args.seed)
    )
    peers = dict(peer.split("=", 1) for peer in args.peer)
    load_before = os.getloadavg()
    with ExitStack() as servers:
        if args.llama_python:
            peers["llama.cpp"] = servers.enter_context(_peer_server("llama.cpp", _llama_command(args.llama_python)))
        if args.vllm_python:
            folder = Path(servers.enter_context(tempfile.TemporaryDirectory()))
            command = _vllm_command(args.vllm_python, folder, config.max_num_seqs)
            settings = _vllm_settings(args.vllm_python)
            peers["vllm"] = servers.enter_context(_peer_server("vllm", command, settings))
        url = args.url or servers.enter_context(own_server(config.max_num_seqs))
        head = {"manifest": manifest, "length_spread": args.length_spread, "load_average_before": load_before}
        asyncio.run(_run(args, url, peers, head))


if __name__ == "__main__":
    main()
