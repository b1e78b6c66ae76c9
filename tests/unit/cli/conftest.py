"""An engine without a model: it says what its prompt makes it say, the same by every method, with made-up metrics."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO, TextIOWrapper

import pytest

from forerun.core.errors import RequestError
from forerun.engine.config import EngineConfig
from forerun.engine.outputs import DecodeMetrics, StreamChunk, TokenOrigin
from forerun.engine.sampling import SamplingParams

WORDS_PER_CHUNK = {"none": 1, "sequential": 3, "ssd": 4, "auto": 2}
SECONDS_PER_CHUNK = {"none": 1.0, "sequential": 1.5, "ssd": 1.0, "auto": 1.0}
DRAFTED: dict[str, TokenOrigin] = {"sequential": "draft", "ssd": "cache_hit", "auto": "draft"}


class FakeTokenizer:
    """One token a byte; conversations become ``role: content`` lines."""

    chat_template: str | None = "{{ messages }}"

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])

    def apply_chat_template(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        if self.chat_template is None:
            raise RequestError("this model has no chat template; write the prompt yourself")
        return list("\n".join(f"{message['role']}: {message['content']}" for message in messages).encode())


@dataclass
class FakeEngine:
    """Answers a prompt with its last line, upper case; ``answer`` may replace that for one method."""

    config: EngineConfig
    answer: Callable[[str, EngineConfig], str]
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    last_metrics: DecodeMetrics | None = None
    is_closed: bool = False
    calls: list[tuple[str, SamplingParams]] = field(default_factory=list)
    num_streams_open: int = 0

    def stream(self, prompts: Sequence[str | Sequence[int]], params: SamplingParams) -> Iterator[StreamChunk]:
        [prompt] = prompts
        text = prompt if isinstance(prompt, str) else bytes(prompt).decode()
        if "too long" in text:
            raise RequestError("the prompt has 9 tokens: this model's context is 8; shorten it")
        self.calls.append((text, params))
        return self._chunks(self.answer(text, self.config).encode()[: params.max_tokens])

    def _chunks(self, output: bytes) -> Iterator[StreamChunk]:
        method = self.config.method
        width = WORDS_PER_CHUNK[method]
        starts = range(0, len(output), width)
        self.num_streams_open += 1
        try:
            for start in starts:
                ids = tuple(output[start : start + width])
                yield StreamChunk(
                    index=0,
                    text=bytes(ids).decode(errors="replace"),
                    token_ids=ids,
                    origins=(*([DRAFTED.get(method, "target")] * (len(ids) - 1)), "target"),
                    finish_reason="stop" if start == starts[-1] else None,
                )
        finally:
            self.num_streams_open -= 1
            self.last_metrics = self._metrics(output, num_steps=len(starts))

    def _metrics(self, output: bytes, *, num_steps: int) -> DecodeMetrics:
        method = self.config.method
        seconds = num_steps * SECONDS_PER_CHUNK[method]
        return DecodeMetrics(
            method=method,
            num_tokens=len(output),
            prefill_s=0.5,
            decode_s=seconds,
            tokens_per_s=(len(output) - 1) / seconds,
            cores=2 if method == "ssd" else 1,
            num_engine_steps=num_steps,
            acceptance_rate=0.0 if method == "none" else 0.75,
            mean_acceptance_length=float(WORDS_PER_CHUNK[method]),
            cache_hit_rate=0.9 if method == "ssd" else 0.0,
            non_verify_share=0.25,
            num_verifications=num_steps,
            num_proposed=0 if method == "none" else 4 * num_steps,
            num_look_ups=num_steps if method == "ssd" else 0,
        )

    def close(self) -> None:
        self.is_closed = True


class FakeEngines:
    """Opens engines and remembers them; at most ``most_open`` were open at one time."""

    def __init__(self) -> None:
        self.opened: list[FakeEngine] = []
        self.most_open = 0
        self.answer: Callable[[str, EngineConfig], str] = lambda text, _: text.splitlines()[-1].upper()

    def __call__(self, config: EngineConfig) -> FakeEngine:
        self.opened.append(FakeEngine(config=config, answer=self.answer))
        self.most_open = max(self.most_open, sum(not engine.is_closed for engine in self.opened))
        return self.opened[-1]


@pytest.fixture
def engines(monkeypatch) -> FakeEngines:
    """Replace the opening of engines wherever a command finds it."""
    for variable in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES"):
        monkeypatch.delenv(variable, raising=False)
    fake = FakeEngines()
    monkeypatch.setattr("forerun.recipes.text_engine.open_engine", fake)
    return fake


@pytest.fixture
def pipe_in(monkeypatch) -> Callable[[bytes], None]:
    """Put bytes on standard input, as a pipe would."""
    return lambda content: monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(content), encoding="utf-8"))
