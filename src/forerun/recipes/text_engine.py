"""What a recipe or a command needs of the engine, and how to open one from a configuration."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Protocol, TypeAlias

from forerun.engine.config import EngineConfig
from forerun.engine.outputs import DecodeMetrics, StreamChunk
from forerun.engine.sampling import SamplingParams


class TextTokenizer(Protocol):
    """The part of a tokenizer that is used outside the engine."""

    @property
    def chat_template(self) -> str | None:
        """Source of the chat template; ``None`` for a model without one."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some token ids."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of one token; none for a special token."""
        ...

    def apply_chat_template(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        """Return the prompt ids of a conversation, up to where the assistant's turn begins."""
        ...


class TextEngine(Protocol):
    """An engine that streams; :class:`forerun.LLM` is one."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """The target's tokenizer."""
        ...

    @property
    def last_metrics(self) -> DecodeMetrics:
        """Metrics of the last call; so far, while it streams."""
        ...

    def stream(self, prompts: Sequence[str | Sequence[int]], params: SamplingParams) -> Iterator[StreamChunk]:
        """Decode prompts (texts or token ids); closing the iterator cancels what is left.

        Effects:
            Replaces :attr:`last_metrics`.
        """
        ...

    def close(self) -> None:
        """Free the models and end every process the engine started."""
        ...


OpenEngine: TypeAlias = Callable[[EngineConfig], TextEngine]


def open_engine(config: EngineConfig) -> TextEngine:
    """Load the models of a configuration; the caller closes what it gets.

    Args:
        config: Models, method and resources.

    Raises:
        ForerunError: A model can't be loaded, or options contradict each other.
    """
    from forerun.engine.api import LLM

    return LLM(**{field.name: getattr(config, field.name) for field in fields(config)})
