"""The engine's public face: load a target and a draft, and decode."""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from types import TracebackType
from typing import Self, cast, overload

from forerun.core.errors import RequestError
from forerun.engine.config import EngineConfig
from forerun.engine.core import EngineCore
from forerun.engine.metrics import DecodeCounters
from forerun.engine.outputs import Completion, DecodeMetrics, StreamChunk
from forerun.engine.request import Request
from forerun.engine.resources import EngineResources
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.load import Load
from forerun.models.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Conversation = Sequence[Mapping[str, str]]


class LLM:
    """An exact inference engine on one machine.

    Greedy output is the same token for token under every method. With temperature the law is the target's own; under
    the default ``coupled`` verification a seed gives the same tokens under every method too.

    Args:
        target: ``default`` (the embedded SmolLM2-135M-Instruct), a GGUF file, a Hugging Face directory or hub name, or
            the folder of a pre-training run or of an ensemble.
        **options: Any field of :class:`forerun.engine.config.EngineConfig`.

    Raises:
        ConfigError: Options that don't go together.
        ModelLoadError: A model is missing, corrupt or unsupported.
        VocabMismatchError: The draft's tokens are not the target's.

    Effects:
        Pins this process to its cores where ``cores`` is given or the method is ``ssd``; SSD starts a process, which
        :meth:`close` (or the end of this one) ends.

    Example:
        >>> from forerun import LLM, SamplingParams
        >>> with LLM(method="ssd") as llm:  # doctest: +SKIP
        ...     print(llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=8))[0].text)
    """

    def __init__(self, target: str = "default", **options: object) -> None:
        config = EngineConfig(target=target, **options)  # pyright: ignore[reportArgumentType] (checked by the dataclass)
        self.config = config
        self._resources = EngineResources(config)
        self._is_decoding = False
        self._counters = DecodeCounters()
        self._way = self._resources.way_for_call(Load(num_requests=1, num_context=0))

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's tokenizer."""
        return self._resources.tokenizer

    @property
    def last_metrics(self) -> DecodeMetrics:
        """What the last call measured (so far, while it streams)."""
        return self._counters.metrics(method=self._way.method, cores=self._way.num_cores)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Decode one prompt or several side by side.

        Args:
            prompts: Text, or token ids, or a list of either. Text is tokenised as it is; see :meth:`chat` for messages.
            params: One for all prompts, or one for each.

        Returns:
            A completion per prompt, in order. One that could not go on (its constraint left no token) has the
            ``finish_reason`` ``error``; the others are not touched by it.

        Raises:
            RequestError: A prompt is empty or too long, or parameters contradict each other.
        """
        requests = self._requests(_as_list(prompts), params)
        for _ in self._run(requests):
            pass
        return [self._completion(request) for request in requests]

    def stream(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> Iterator[StreamChunk]:
        """Decode as :meth:`generate` does, yielding text and tokens as they are decided.

        Raises:
            RequestError: As :meth:`generate`; or, at the first chunk, another stream of this engine is not at its end.
        """
        return self._run(self._requests(_as_list(prompts), params))

    @overload
    def chat(self, messages: Conversation, params: SamplingParams | None = None) -> Completion: ...

    @overload
    def chat(
        self, messages: Sequence[Conversation], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]: ...

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Completion | list[Completion]:
        """Answer a conversation in the model's chat template, or several side by side.

        Args:
            messages: Each with ``role`` and ``content``; or a list of such lists.
            params: Sampling parameters; for several conversations, one for all, or one for each.

        Returns:
            The reply, or for several a reply to each, in order.

        Raises:
            RequestError: The template refuses a conversation, or as :meth:`generate`.
        """
        if not messages:
            raise RequestError("messages is empty: give at least one message, or one conversation")
        if isinstance(messages[0], Mapping):
            return self.generate([self.tokenizer.apply_chat_template(cast(Conversation, messages))], params)[0]
        prompts = [self.tokenizer.apply_chat_template(one) for one in cast(Sequence[Conversation], messages)]
        return self.generate(prompts, params)

    def take_device_times(self) -> dict[str, float]:
        """Return how long recorded passes kept the devices of ``target`` and ``draft`` busy since the last call, in s.

        It is measured from the first call on. Nothing is named that does not run in passes of fixed shape.
        """
        return self._resources.take_device_times()

    @property
    def num_recorded_graphs(self) -> int:
        """Functions of fixed shape that target and draft have recorded on a device since the start; 0 elsewhere."""
        return self._resources.num_recorded_graphs

    def close(self) -> None:
        """End the drafter's process, if there is one, and give this process its cores back. The engine ends with it."""
        self._resources.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _run(self, requests: list[Request]) -> Iterator[StreamChunk]:
        if self._is_decoding:
            raise RequestError(
                "this engine is decoding already, and its cache holds those requests: read the other stream to its "
                "end, or close() it; to decode side by side give all prompts to one call"
            )
        self._is_decoding = True
        self._counters = DecodeCounters()
        core = EngineCore(
            self._resources.target, verification=self.config.speculative.verification, counters=self._counters
        )
        self._way = self._resources.way_for_call(Load.of(requests))
        try:
            yield from core.run(requests, self._way.speculator, self._way.controller)
        finally:
            self._is_decoding = False

    def _requests(
        self, prompts: list[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Request]:
        every = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else list(params)
        if len(every) != len(prompts):
            raise RequestError(
                f"{len(every)} sampling parameters for {len(prompts)} prompts: give one, or one for each"
            )
        return [
            self._request(index, prompt, some) for index, (prompt, some) in enumerate(zip(prompts, every, strict=True))
        ]

    def _request(self, index: int, prompt: Prompt, params: SamplingParams) -> Request:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return self._resources.new_request(ids, params, index=index, number=index, name=f"prompt {index}")

    def _completion(self, request: Request) -> Completion:
        return Completion(
            index=request.index,
            prompt_token_ids=tuple(request.prompt_ids),
            text=request.text,
            token_ids=tuple(request.output_ids),
            origins=tuple(request.origins),
            logprobs=tuple(request.logprobs),
            finish_reason=request.finish_reason or "cancelled",
            metrics=self.last_metrics,
            error=request.error,
        )


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Integral)):
        return [prompts]  # pyright: ignore[reportReturnType] (a string or a sequence of ids)
    return list(prompts)  # pyright: ignore[reportReturnType, reportArgumentType]
