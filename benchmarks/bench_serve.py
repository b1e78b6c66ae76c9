"""The server under load: waiting times and throughput of AR, SD, SSD and auto; writes benchmarks/results/serve.json.

    python benchmarks/bench_serve.py [--levels 1 2 4 8] [--requests 24] [--out FILE] [--url http://...]

One server has every method ready, so each request names its own and the methods take turns on the same process: their
ratios are within one run. Two kinds of load, each with prompts that begin alike and prompts that don't:

- open: requests come at random times (Poisson), at `level` times the rate that AR serves one at a time. A slow method
  does not slow the load. Waiting times count from when a request was due, not from when it was sent.
- closed: `level` clients, each asking again as soon as it is answered: throughput at a number of requests.

Every method gets the same prompts at the same times. Needs httpx, and a machine that does nothing else.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count, product
from pathlib import Path

import httpx

from forerun.cli.console import write_json, write_line
from forerun.engine.config import EngineConfig
from forerun.engine.sampling import SamplingParams
from forerun.recipes.manifest import run_manifest

_FOLDER = Path(__file__).resolve().parent
METHODS = ("none", "sequential", "ssd", "auto")
SHARED = (
    "You work at the help desk of a public library in a small harbour town. The library has three floors, a reading "
    "room with newspapers, a workshop with tools that can be borrowed, and a garden that is open in summer. It opens "
    "at nine and closes at seven, on Saturdays at four. Members may borrow ten items for four weeks; games for "
    "one. Answer questions in plain words, in at most five sentences, and say so when you don't know something. "
)
MAX_TOKENS = 64


@dataclass
class Timing:
    """One request as its client saw it; seconds."""

    ttft_s: float = float("nan")
    end_s: float = float("nan")
    gaps_s: list[float] = field(default_factory=list)
    num_tokens: int = 0
    error: str | None = None


def percentiles(values: list[float]) -> dict[str, float | None]:
    """Return p50, p95 and p99, by the nearest rank."""
    ranked = sorted(values)
    places = {
        name: min(len(ranked) - 1, int(share * len(ranked)))
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }
    return {name: ranked[place] if ranked else None for name, place in places.items()}


async def ask(client: httpx.AsyncClient, prompt: str, method: str, due_s: float) -> Timing:
    """Stream one chat, timed from when it was due."""
    timing, last_s = Timing(), due_s
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MAX_TOKENS, "temperature": 0, "stream": True, "return_tokens": True, "method": method,
    }  # fmt: skip
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                timing.error = f"status {response.status_code}"
                return timing
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                now_s = time.perf_counter()
                content = json.loads(line[6:])
                if "error" in content:
                    timing.error = content["error"]["message"]
                    return timing
                num_tokens = len(content["choices"][0]["tokens"])
                if num_tokens == 0:
                    continue
                if timing.num_tokens == 0:
                    timing.ttft_s = now_s - due_s
                else:
                    timing.gaps_s += [(now_s - last_s) / num_tokens] * num_tokens
                timing.num_tokens += num_tokens
                last_s = now_s
    except httpx.HTTPError as error:
        timing.error = type(error).__name__
    timing.end_s = time.perf_counter()
    return timing


def prompts_for(kind: str, texts: list[str], *, num_requests: int, seed: int) -> list[str]:
    """Return prompts that begin alike, or each with words of its own."""
    source = random.Random(seed)
    chosen = source.choices(texts, k=num_requests)
    if kind == "shared":
        return [SHARED + text for text in chosen]
    return [f"Case {source.getrandbits(40):x}. {text}" for text in chosen]


async def open_load(
    client: httpx.AsyncClient, prompts: list[str], method: str, *, rate: float, seed: int
) -> list[Timing]:
    """Send each prompt when it is due."""
    source, due_s, tasks = random.Random(seed), time.perf_counter(), []
    for prompt in prompts:
        due_s += source.expovariate(rate)
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(client, prompt, method, due_s)))
    return await asyncio.gather(*tasks)


async def closed_load(client: httpx.AsyncClient, prompts: list[str], method: str, *, num_clients: int) -> list[Timing]:
    """Keep so many requests going."""
    left = iter(prompts)

    async def work() -> list[Timing]:
        return [await ask(client, prompt, method, time.perf_counter()) for prompt in left]

    return [timing for timings in await asyncio.gather(*(work() for _ in range(num_clients))) for timing in timings]


async def measure(load: Callable[[], Awaitable[list[Timing]]]) -> dict[str, object]:
    """Run a load and sum it up."""
    started_s = time.perf_counter()
    timings = await load()
    done = [timing for timing in timings if timing.error is None]
    spent_s = max((timing.end_s for timing in done), default=started_s) - started_s
    return {
        "num_requests": len(timings),
        "errors": sorted(timing.error for timing in timings if timing.error is not None),
        "num_tokens": sum(timing.num_tokens for timing in done),
        "spent_s": spent_s,
        "tokens_per_s": sum(timing.num_tokens for timing in done) / spent_s if spent_s > 0 else None,
        "ttft_s": percentiles([timing.ttft_s for timing in done]),
        "itl_s": percentiles([gap for timing in done for gap in timing.gaps_s]),
    }


async def run(args: argparse.Namespace, url: str) -> list[dict[str, object]]:
    """Measure every load with every method, in an order that changes."""
    lines = (_FOLDER / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["prompt"] for line in lines]
    order, seeds, records = random.Random(args.seed), count(args.seed), []
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        warm = prompts_for("distinct", texts, num_requests=4, seed=0)
        for method in METHODS:
            await closed_load(client, warm, method, num_clients=2)
        few = prompts_for("distinct", texts, num_requests=6, seed=1)
        solo = await measure(partial(closed_load, client, few, "none", num_clients=1))
        base_rate = 6 / float(str(solo["spent_s"]))
        for kind, level in product(("distinct", "shared"), args.levels):
            seed = next(seeds)
            prompts = prompts_for(kind, texts, num_requests=args.requests, seed=seed)
            for mode in args.modes:
                for method in order.sample(METHODS, len(METHODS)):
                    if mode == "open":
                        load = partial(open_load, client, prompts, method, rate=level * base_rate, seed=seed)
                    else:
                        load = partial(closed_load, client, prompts, method, num_clients=level)
                    record = {"mode": mode, "prefixes": kind, "level": level, "method": method} | await measure(load)
                    records.append(record)
                    write_line(json.dumps(record))
    return records


def ratios(records: list[dict[str, object]]) -> list[dict[str, object]]:
    """Compare auto with the best fixed method, and each with AR, at each closed load."""
    found = []
    closed = [record for record in records if record["mode"] == "closed"]
    for place in sorted({(str(record["prefixes"]), int(str(record["level"]))) for record in closed}):
        rates = {
            str(record["method"]): float(str(record["tokens_per_s"]))
            for record in closed
            if (record["prefixes"], record["level"]) == place
        }
        fixed = {method: rate for method, rate in rates.items() if method != "auto"}
        best = max(fixed, key=lambda method: fixed[method])
        over_ar = {f"{method}_over_ar": rate / rates["none"] for method, rate in rates.items() if method != "none"}
        auto = {"best_fixed": best, "auto_over_best_fixed": rates["auto"] / fixed[best]}
        found.append({"prefixes": place[0], "level": place[1]} | auto | over_ar)
    return found


@contextmanager
def own_server(num_seqs: int) -> Iterator[str]:
    """Start a server with every method ready, and end it."""
    command = [sys.executable, "-c", "from forerun.cli.main import main; raise SystemExit(main())", "serve"]
    options = ["--port", "0", "--method", "auto", "--max-num-seqs", str(num_seqs), "--max-waiting", "1000"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert "http://" in line, "the server did not start; run `forerun serve` to see why"
        try:
            yield line.split()[-1]
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--modes", nargs="+", choices=["open", "closed"], default=["open", "closed"])
    parser.add_argument("--requests", type=int, default=24, help="requests of each load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", help="a server that runs already, with every method ready")
    parser.add_argument("--out", type=Path, default=_FOLDER / "results" / "serve.json")
    args = parser.parse_args()
    config = EngineConfig(max_num_seqs=max(args.levels))
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, seed=args.seed)
    manifest = run_manifest(engine=config, sampling=params)
    if args.url:
        records = asyncio.run(run(args, args.url))
    else:
        with own_server(config.max_num_seqs) as url:
            records = asyncio.run(run(args, url))
    payload = {"manifest": manifest, "records": records, "ratios": ratios(records) if "closed" in args.modes else []}
    write_json(args.out, payload)


if __name__ == "__main__":
    main()
