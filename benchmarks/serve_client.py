"""A client of OpenAI's chat API that times every token, and loads made of many of them."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

MAX_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Who is asked, and how.

    Attributes:
        name: What results call it.
        client: Of its server.
        extra: Fields of a request beyond the usual ones.
        max_tokens: Most tokens of an answer.
        length_spread: Of each answer's limit about that, as a share of it: limits are even between the ends, and a
            prompt's is the same for everyone.
    """

    name: str
    client: httpx.AsyncClient
    extra: dict[str, object] = field(default_factory=dict)
    max_tokens: int = MAX_TOKENS
    length_spread: float = 0.0

    def most_tokens(self, prompt: str) -> int:
        """Return how many tokens the answer to a prompt may have."""
        return max(1, round(self.max_tokens * (1 + self.length_spread * random.Random(prompt).uniform(-1, 1))))


@dataclass
class Timing:
    """One request as its client saw it; seconds on the clock of ``time.perf_counter``."""

    due_s: float
    end_s: float = float("nan")
    tokens: list[tuple[float, int]] = field(default_factory=list)
    error: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that came."""
        return sum(number for _, number in self.tokens)

    @property
    def ttft_s(self) -> float:
        """From when the request was due to its first token."""
        return self.tokens[0][0] - self.due_s

    @property
    def gaps_s(self) -> list[float]:
        """Time per token after the first: those that come together share what they waited."""
        gaps: list[float] = []
        for (before_s, _), (now_s, number) in zip(self.tokens, self.tokens[1:], strict=False):
            gaps += [(now_s - before_s) / number] * number
        return gaps


def percentiles(values: list[float]) -> dict[str, float | None]:
    """Return p50, p95 and p99, by the nearest rank."""
    ranked = sorted(values)
    places = {
        name: min(len(ranked) - 1, int(share * len(ranked)))
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }
    return {name: ranked[place] if ranked else None for name, place in places.items()}


async def ask(subject: Subject, prompt: str, due_s: float) -> Timing:
    """Stream one greedy chat. A server that does not say how many tokens a chunk has sends one in each."""
    timing = Timing(due_s=due_s)
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": subject.most_tokens(prompt),
        "temperature": 0,
        "stream": True,
    }
    try:
        async with subject.client.stream("POST", "/v1/chat/completions", json=body | subject.extra) as response:
            if response.status_code != 200:
                timing.error = f"status {response.status_code}"
            async for line in response.aiter_lines():
                if timing.error is None and line.startswith("data: {"):
                    _take(timing, json.loads(line[6:]))
    except httpx.HTTPError as error:
        timing.error = type(error).__name__
    timing.end_s = time.perf_counter()
    if timing.error is None and not timing.tokens:
        timing.error = "no tokens"
    return timing


def _take(timing: Timing, content: dict) -> None:
    if "error" in content:
        timing.error = content["error"]["message"]
        return
    for choice in content.get("choices", ()):
        has_text = bool(choice.get("delta", {}).get("content"))
        number = len(choice["tokens"]) if "tokens" in choice else int(has_text)
        if number > 0:
            timing.tokens.append((time.perf_counter(), number))


async def open_load(subject: Subject, prompts: Sequence[str], *, rate: float, seed: int) -> list[Timing]:
    """Send each prompt when it is due, at random times of a mean rate a second, whatever the server does."""
    source, due_s, tasks = random.Random(seed), time.perf_counter(), []
    for prompt in prompts:
        due_s += source.expovariate(rate)
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(subject, prompt, due_s)))
    return await asyncio.gather(*tasks)


async def closed_load(subject: Subject, prompts: Sequence[str], *, num_clients: int) -> tuple[list[Timing], float]:
    """Keep so many requests going.

    Returns:
        What each client saw, and until when all of them had something to ask.
    """
    left = iter(prompts)
    first_idle_s: list[float] = []

    async def work() -> list[Timing]:
        timings = [await ask(subject, prompt, time.perf_counter()) for prompt in left]
        first_idle_s.append(time.perf_counter())
        return timings

    parts = await asyncio.gather(*(work() for _ in range(num_clients)))
    return [timing for part in parts for timing in part], min(first_idle_s)


def summary(timings: Sequence[Timing], *, started_s: float, full_until_s: float | None = None) -> dict[str, object]:
    """Sum a load up.

    Args:
        timings: Of all requests.
        started_s: When it began.
        full_until_s: Until when it was as large as it should be; ``tokens_per_s`` is of that time.
    """
    done = [timing for timing in timings if timing.error is None]
    end_s = max((timing.end_s for timing in done), default=started_s)
    until_s = end_s if full_until_s is None else full_until_s
    num_tokens = sum(number for timing in done for at_s, number in timing.tokens if at_s <= until_s)
    return {
        "num_requests": len(timings),
        "errors": sorted(timing.error for timing in timings if timing.error is not None),
        "num_tokens": sum(timing.num_tokens for timing in done),
        "spent_s": end_s - started_s,
        "tokens_per_s": num_tokens / (until_s - started_s) if until_s > started_s else None,
        "ttft_s": percentiles([timing.ttft_s for timing in done]),
        "itl_s": percentiles([gap for timing in done for gap in timing.gaps_s]),
    }
