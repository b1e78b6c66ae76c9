"""The engine's public face: load a target and a draft, and decode."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from types import TracebackType
from typing import Self

import torch

from forerun.core.dtype_choice import choose_dtype
from forerun.core.env import available_cores, cpu_info, pin_process
from forerun.core.errors import ConfigError, RequestError
from forerun.core.memory import release_free_memory
from forerun.core.rows import Rows
from forerun.engine.config import EngineConfig
from forerun.engine.core import EngineCore
from forerun.engine.logits import LogitsProcessor
from forerun.engine.metrics import DecodeCounters
from forerun.engine.outputs import Completion, DecodeMetrics, StreamChunk
from forerun.engine.request import Request
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculation import SpeculatorFactory
from forerun.engine.stop import OutputTracker
from forerun.models.load import load_checkpoint
from forerun.models.runner import build_target
from forerun.models.tokenizer import Tokenizer

Prompt = str | Sequence[int]
_ROUNDS_PER_REQUEST = 1 << 24


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
        cores = config.cores or available_cores()
        torch.set_num_threads(config.num_threads)
        checkpoint = load_checkpoint(config.target)
        dtype = choose_dtype(
            config.dtype,
            cpu=cpu_info(),
            weights_are_quantized=checkpoint.quantised,
            is_ensemble=checkpoint.ensemble is not None,
        ).dtype
        capacity = min(config.max_model_len or 4096, checkpoint.config.max_len)
        if config.max_model_len is not None and config.max_model_len > checkpoint.config.max_len:
            raise ConfigError(
                f"max_model_len={config.max_model_len}: {config.target} was trained for {checkpoint.config.max_len} "
                "tokens; use at most that"
            )
        self._factory = SpeculatorFactory(config, checkpoint, dtype=dtype, capacity=capacity, cores=cores)
        self._cores_before = available_cores()
        self._checkpoint = checkpoint
        self._max_len = capacity
        try:
            if self._factory.target_cores:
                pin_process(*self._factory.target_cores)
            self._target = build_target(checkpoint, dtype=dtype, num_sequences=config.max_num_seqs, capacity=capacity)
            # The first pass loads kernels or compiles them: better now than while a request waits.
            self._target.forward(Rows.chains([(0, 0, [0])]))
            self._factory.wait_until_ready(self._target)
            release_free_memory()
        except BaseException:
            self.close()
            raise
        self._num_requests = 0
        self._is_decoding = False
        self._counters = DecodeCounters()
        self._way = self._factory.way_for_call(1)

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's tokenizer."""
        return self._checkpoint.tokenizer

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
            A completion per prompt, in order.

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

    def chat(self, messages: Sequence[Mapping[str, str]], params: SamplingParams | None = None) -> Completion:
        """Answer a conversation in the model's chat template.

        Args:
            messages: Each with ``role`` and ``content``.
            params: Sampling parameters.

        Returns:
            The reply.
        """
        return self.generate([self.tokenizer.apply_chat_template(messages)], params)[0]

    def close(self) -> None:
        """End the drafter's process, if there is one, and give this process its cores back. The engine ends with it."""
        self._factory.close()
        if available_cores() != self._cores_before:
            pin_process(*self._cores_before)

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
        core = EngineCore(self._target, verification=self.config.speculative.verification, counters=self._counters)
        self._way = self._factory.way_for_call(len(requests))
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
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        vocab_size = self._checkpoint.config.vocab_size
        if not ids:
            raise RequestError(f"prompt {index} is empty: give at least one token")
        if len(ids) + 1 > self._max_len:
            raise RequestError(
                f"prompt {index} has {len(ids)} tokens; the context holds {self._max_len} with at least one new token: "
                "shorten it, or raise max_model_len if the model allows"
            )
        if any(not 0 <= token < vocab_size for token in ids):
            raise RequestError(f"prompt {index} has token ids outside [0, {vocab_size}): use this model's tokenizer")
        if params.seed is None:
            params = replace(params, seed=secrets.randbits(63))
        room = self._max_len - len(ids)
        max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        self._num_requests += 1
        eos_ids = self._checkpoint.eos_ids
        return Request(
            index=index,
            number=index,
            prompt_ids=tuple(ids),
            params=params,
            processor=LogitsProcessor(params, ids, eos_ids, vocab_size),
            tracker=OutputTracker(params, eos_ids, self.tokenizer.token_bytes, max_tokens=max_tokens),
            max_tokens=max_tokens,
            round_number=self._num_requests * _ROUNDS_PER_REQUEST,
        )

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
        )


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Integral)):
        return [prompts]  # pyright: ignore[reportReturnType] (a string or a sequence of ids)
    return list(prompts)  # pyright: ignore[reportReturnType, reportArgumentType]
