"""The server for a long time under all that goes wrong; writes benchmarks/results/soak.json, exit status 1 on failure.

    python benchmarks/soak.py                                        # 30 minutes, 20 clients
    python benchmarks/soak.py --seconds 60 --clients 8 --out runs/soak.json

Clients ask greedily, by every method, with priorities; some cut their stream off; malformed requests come in between;
the drafter's process is killed every minute; the cache holds less than all requests together want, so that some are put
aside and come back. Every token must be the one that the engine by itself gives for that prompt. At the end nothing may
be lost, hung or held, and memory must be what it was after the first third. Needs httpx and psutil.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from forerun import LLM, SamplingParams
from forerun.cli.console import write_json, write_line
from forerun.core.memory import release_free_memory
from forerun.engine.config import EngineConfig
from forerun.engine.resources import EngineResources
from forerun.engine.server.app import ServerApp
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.run import DrainingServer, bind
from forerun.recipes.manifest import run_manifest

_FOLDER = Path(__file__).resolve().parent
_METHODS = (None, "none", "sequential", "ssd", "auto")
_HUNG_S = 300
_MOST_GROWTH = 0.03
_LEAST_SECONDS = 60
"""Before that, memory is still being touched for the first time: its growth says nothing."""
_MALFORMED: tuple[bytes, ...] = (
    b"{",
    b"\xff\xfe",
    b"[]",
    b'{"prompt": 5}',
    b'{"prompt": [-1]}',
    b'{"prompt": [1, 2], "max_tokens": 1000000}',
    b'{"prompt": [1], "temperature": "hot"}',
    b'{"prompt": [1], "no_such_field": 1}',
    b'{"prompt": []}',
    b"[" * 10000,
)


@dataclass
class Tally:
    """What happened."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)


class Soak:
    """Clients, saboteur and bookkeeper of one run.

    Args:
        args: Of the command line.
        prompts: Token ids of each prompt.
        expected: The output of each, by the engine alone.
    """

    def __init__(self, args: argparse.Namespace, prompts: Sequence[list[int]], expected: Sequence[list[int]]) -> None:
        self._args, self._prompts, self._expected = args, prompts, expected
        self._end_s = 0.0
        self.tally = Tally()

    async def run(self, client: httpx.AsyncClient) -> None:
        """Ask until time is up, then until everyone is answered."""
        self._end_s = time.monotonic() + self._args.seconds
        others = [asyncio.create_task(self._kill_drafters()), asyncio.create_task(self._watch_memory())]
        await asyncio.gather(*(self._ask_on(client, number) for number in range(self._args.clients)))
        for task in others:
            task.cancel()

    async def _ask_on(self, client: httpx.AsyncClient, number: int) -> None:
        source = random.Random(self._args.seed * 1000 + number)
        while time.monotonic() < self._end_s:
            try:
                async with asyncio.timeout(_HUNG_S):
                    if source.random() < 0.1:
                        await self._ask_nonsense(client, source)
                    else:
                        await self._ask(client, source)
            except TimeoutError:
                self.tally.counts["hung"] += 1
            except httpx.HTTPError as error:
                self.tally.counts["lost"] += 1
                self.tally.wrong.append(f"{type(error).__name__}: {error}")

    async def _ask_nonsense(self, client: httpx.AsyncClient, source: random.Random) -> None:
        headers = {"content-type": "application/json"}
        response = await client.post("/v1/completions", content=source.choice(_MALFORMED), headers=headers)
        self.tally.counts["malformed"] += 1
        if not 400 <= response.status_code < 500:
            self.tally.wrong.append(f"a malformed request got {response.status_code}")

    async def _ask(self, client: httpx.AsyncClient, source: random.Random) -> None:
        index = source.randrange(len(self._prompts))
        expected = self._expected[index][: source.randint(1, self._args.tokens)]
        body: dict[str, object] = {
            "prompt": self._prompts[index],
            "max_tokens": len(expected),
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_tokens": True,
            "priority": source.randint(0, 2),
        }
        method = source.choice(_METHODS)
        if method is not None:
            body["method"] = method
        patience = source.randint(1, len(expected)) if source.random() < 0.25 else None
        got: list[int] = []
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code == 429:
                self.tally.counts["refused"] += 1
                await asyncio.sleep(0.5)
                return
            if response.status_code != 200:
                self.tally.wrong.append(f"status {response.status_code}: {(await response.aread())[:200]!r}")
                return
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    content = json.loads(line[6:])
                    if "error" in content:
                        self.tally.wrong.append(str(content["error"]))
                        return
                    got += [token["id"] for choice in content["choices"] for token in choice["tokens"]]
                if patience is not None and len(got) >= patience:
                    self.tally.counts["cancelled"] += 1
                    break
        is_whole = patience is None
        if got != expected[: len(got)] or (is_whole and len(got) != len(expected)):
            self.tally.wrong.append(f"prompt {index} by {method}: {got} instead of {expected}")
        self.tally.counts["answered"] += is_whole
        self.tally.counts["tokens"] += len(got)

    async def _kill_drafters(self) -> None:
        while True:
            await asyncio.sleep(self._args.kill_every)
            for process in _drafters():
                process.kill()
                self.tally.counts["drafters killed"] += 1

    async def _watch_memory(self) -> None:
        own = psutil.Process()
        while True:
            await asyncio.sleep(self._args.seconds / 60)
            gc.collect()  # the clients share this process, and leave cycles behind with each answer
            release_free_memory()
            self.tally.memory_mib.append(own.memory_info().rss / 2**20)


def memory_growth(memory_mib: Sequence[float]) -> float | None:
    """Return by what share memory grew from the second third to the last, highest value against highest."""
    third = len(memory_mib) // 3
    if third == 0:
        return None
    before, after = max(memory_mib[third : 2 * third]), max(memory_mib[2 * third :])
    return after / before - 1


def _drafters() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children()
        if "forerun.engine.speculative.worker" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    ]


def _expected(args: argparse.Namespace) -> tuple[list[list[int]], list[list[int]]]:
    """Return prompts, some of which begin alike, and what the engine gives for each, one token a pass."""
    lines = (_FOLDER / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    with LLM(method="none", max_model_len=args.context, max_num_seqs=4, num_threads=1) as llm:
        ids = [llm.tokenizer.encode(json.loads(line)["prompt"]) for line in lines[: args.prompts]]
        room = args.context - args.tokens - 1
        stem = (ids[0] * 10)[: room // 2]
        prompts = [(stem if number % 2 else []) + own[: room // 2] for number, own in enumerate(ids)]
        params = SamplingParams(temperature=0, max_tokens=args.tokens, ignore_eos=True)
        return prompts, [list(completion.token_ids) for completion in llm.generate(prompts, params)]


async def _run(args: argparse.Namespace, soak: Soak, app: ServerApp, config: ServerConfig) -> None:
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    listener = bind(config)
    server = DrainingServer(app, config, on_listening=url.set_result)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    limits = httpx.Limits(max_connections=None)
    try:
        async with httpx.AsyncClient(base_url=await url, timeout=2 * _HUNG_S, limits=limits) as client:
            await soak.run(client)
    finally:
        server.begin_drain("the soak is over")
        await asyncio.wait_for(serving, _HUNG_S)
        listener.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--kill-every", type=float, default=60, help="seconds from one kill of the drafter to the next")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=48, help="most tokens of an answer")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=_FOLDER / "results" / "soak.json")
    args = parser.parse_args()
    prompts, expected = _expected(args)
    engine = EngineConfig(method="auto", max_model_len=args.context, max_num_seqs=args.max_num_seqs)
    # Half of what all sequences could hold, so that requests are put aside for want of blocks.
    config = ServerConfig(port=0, max_cached_tokens=args.context * max(2, args.max_num_seqs) // 2, max_waiting=1000)
    load_before = os.getloadavg()
    soak, app = Soak(args, prompts, expected), ServerApp(EngineResources(engine), config)
    asyncio.run(_run(args, soak, app, config))
    app.engine.thread.check_integrity()
    tally = soak.tally
    growth = memory_growth(tally.memory_mib) if args.seconds >= _LEAST_SECONDS else None
    tally.counts["put aside"] = app.engine.thread.num_preempted
    problems = len(tally.wrong) + tally.counts["hung"] + tally.counts["lost"] + len(_drafters())
    is_flat = growth is None or growth <= _MOST_GROWTH
    report = {
        "manifest": run_manifest(engine=engine, sampling=SamplingParams(temperature=0, max_tokens=args.tokens)),
        "options": {name: value for name, value in vars(args).items() if name != "out"},
        "load_average_before": load_before,
        "counts": dict(tally.counts),
        "wrong": tally.wrong[:20],
        "memory_growth": growth,
        "memory_mib": tally.memory_mib,
        "integrity": "clean",
        "passed": problems == 0 and is_flat,
    }
    write_json(args.out, report)
    summary = {name: report[name] for name in ("counts", "wrong", "memory_growth", "passed")}
    write_line(json.dumps(summary, indent=1))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
