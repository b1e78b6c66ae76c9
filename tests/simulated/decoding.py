"""The real engine core over simulated models: one function for every method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from forerun.engine.config import SpeculativeConfig
from forerun.engine.constraint_grammar import GrammarCompiler
from forerun.engine.constraint_state import TokenConstraint
from forerun.engine.core import EngineCore
from forerun.engine.logits import LogitsProcessor
from forerun.engine.metrics import DecodeCounters
from forerun.engine.outputs import StreamChunk
from forerun.engine.request import Request
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.choice import DraftChoice
from forerun.engine.speculative.controller import BranchBudget, FixedController
from forerun.engine.speculative.drafter_restart import DrafterRestarts, RestartConfig
from forerun.engine.speculative.fallback_length import FallbackLength, OneLess
from forerun.engine.speculative.plain import NoSpeculator
from forerun.engine.speculative.sequential import NgramSpeculator, SequentialSpeculator
from forerun.engine.speculative.speculator import Speculator
from forerun.engine.speculative.ssd import SsdSpeculator
from forerun.engine.speculative.target_states import TargetStates
from forerun.engine.stop import OutputTracker
from simulated.drafter import InProcessDrafter, Progress, all_passes
from simulated.models import Law, PagedSimulatedModel, SimulatedHead, SimulatedModel

ROUNDS_PER_REQUEST = 1000


@dataclass(frozen=True, kw_only=True)
class World:
    """A target, a draft and what they speak.

    Attributes:
        target: Law of the target.
        draft: Law of the draft.
        vocab_size: Of the target.
        eos_ids: Ids that end a sequence.
        capacity: Slots per sequence, of both models.
        num_sequences: Requests side by side.
        masks_drafts: Whether drafts know the constraints of requests.
        draft_ids: Reduced vocabulary of the draft.
        token_bytes: Text of each token; by default one letter each.
        block_tokens: Slots per block of the target's cache; ``None``: it has no block tables.
    """

    target: Law
    draft: Law
    vocab_size: int
    eos_ids: tuple[int, ...] = ()
    capacity: int = 64
    num_sequences: int = 3
    masks_drafts: bool = True
    draft_ids: tuple[int, ...] | None = None
    token_bytes: tuple[bytes, ...] | None = None
    block_tokens: int | None = None

    def target_model(self) -> SimulatedModel:
        sizes = {"vocab_size": self.vocab_size, "num_sequences": self.num_sequences, "capacity": self.capacity}
        if self.block_tokens is None:
            return SimulatedModel(self.target, **sizes)
        return PagedSimulatedModel(self.target, block_tokens=self.block_tokens, **sizes)

    def draft_model(self, *, reads_features: bool = False) -> SimulatedModel:
        return (SimulatedHead if reads_features else SimulatedModel)(
            self.draft,
            vocab_size=self.vocab_size,
            num_sequences=self.num_sequences,
            capacity=self.capacity,
            vocab_ids=None if self.draft_ids is None else np.array(self.draft_ids, np.int64),
        )

    def requests(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[Request]:
        text = self.texts
        return [
            Request(
                index=index,
                number=index,
                prompt_ids=tuple(prompt),
                params=some,
                processor=LogitsProcessor(
                    some, prompt, self.eos_ids, self.vocab_size, constraint=self.constraint(some)
                ),
                tracker=OutputTracker(
                    some, self.eos_ids, text.__getitem__, max_tokens=_max_tokens(some, self.capacity - len(prompt))
                ),
                max_tokens=_max_tokens(some, self.capacity - len(prompt)),
                round_number=(index + 1) * ROUNDS_PER_REQUEST,
            )
            for index, (prompt, some) in enumerate(zip(prompts, params, strict=True))
        ]

    @property
    def texts(self) -> tuple[bytes, ...]:
        return self.token_bytes or tuple(bytes([97 + token % 26]) for token in range(self.vocab_size))

    @cached_property
    def grammars(self) -> GrammarCompiler:
        return GrammarCompiler(LongestMatches(self.texts), vocab_size=self.vocab_size)

    def constraint(self, params: SamplingParams) -> TokenConstraint | None:
        if params.constraint is None:
            return None
        return self.grammars.state(params.constraint, ending_ids=params.ending_ids(self.eos_ids))


class LongestMatches:
    """A tokenizer that takes the longest token, time and again."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes

    def encode(self, text: str) -> list[int]:
        ids, rest = [], text.encode()
        while rest:
            fitting = [index for index, some in enumerate(self._token_bytes) if some and rest.startswith(some)]
            if not fitting:
                return ids
            ids.append(max(fitting, key=lambda index: len(self._token_bytes[index])))
            rest = rest[len(self._token_bytes[ids[-1]]) :]
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        return self._token_bytes[token_id]


class EveryLength(OneLess):
    """Lengths of fallbacks in turn, none at all among them."""

    def __init__(self) -> None:
        self._num_choices = 0

    def choose(self, limit: int, *, num_missed: int = 1, num_requests: int = 1) -> int:
        assert 1 <= num_missed <= num_requests
        self._num_choices += 1
        return (limit - self._num_choices) % (limit + 1)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to decode.

    Attributes:
        method: ``none``, ``ngram``, ``sequential`` or ``ssd``.
        num_speculative_tokens: K.
        speculative: The rest.
        branch_budget: B.
        progress: How far the drafter gets (SSD).
        dies_after: Messages after which the drafter is dead (SSD).
        restarts: How others are started then (SSD); each dies as the first did.
        reads: What the draft reads of the target: ``nothing``, its keys and values, or its hidden states.
        fallback_length: Makes what sets the length of fallbacks (SSD).
    """

    method: str
    num_speculative_tokens: int = 3
    speculative: SpeculativeConfig = field(default_factory=SpeculativeConfig)
    branch_budget: int = 8
    progress: Progress = all_passes
    dies_after: int | None = None
    restarts: RestartConfig | None = None
    reads: Literal["nothing", "states", "features"] = "nothing"
    fallback_length: Callable[[], FallbackLength] = OneLess

    def speculator(self, world: World, target: SimulatedModel | None = None) -> Speculator:
        if self.method == "none":
            return NoSpeculator()
        if self.method == "ngram":
            return NgramSpeculator()
        states, reads_features = None, self.reads == "features"
        assert target is not None or self.reads == "nothing", "what a draft reads is the target's that runs"
        if target is not None and reads_features:
            states = TargetStates.features(target, layer_ids=[0, 2])
        elif target is not None and self.reads == "states":
            states = TargetStates.keys_and_values(target, layer_ids=[0, 2])
        if self.method == "sequential":
            model = world.draft_model(reads_features=reads_features)
            return SequentialSpeculator(
                model,
                lambda request: DraftChoice(
                    request.params,
                    self.speculative,
                    request.prompt_ids,
                    frozenset(world.eos_ids),
                    vocab_size=world.vocab_size,
                    vocab_ids=model.vocab_ids,
                    request_number=request.number,
                    constraint=request.processor.fork_constraint() if world.masks_drafts else None,
                ),
                states=states,
            )

        def drafter() -> InProcessDrafter:
            return InProcessDrafter(
                world.draft_model(reads_features=reads_features),
                self.speculative,
                vocab_size=world.vocab_size,
                eos_ids=world.eos_ids,
                max_depth=self.num_speculative_tokens + 1,
                state_entry={"nothing": (0,), "states": (2, 2, 1, 1), "features": (2, world.capacity)}[self.reads],
                states_are_wide=reads_features,
                progress=self.progress,
                dies_after=self.dies_after,
                grammars=world.grammars if world.masks_drafts else None,
            )

        return SsdSpeculator(
            drafter(),
            self.speculative,
            num_speculative_tokens=self.num_speculative_tokens,
            branch_budget=BranchBudget(self.branch_budget, least=self.branch_budget, most=self.branch_budget),
            fallback_length=self.fallback_length(),
            states=states,
            restarts=None if self.restarts is None else DrafterRestarts(drafter, self.restarts),
        )


AUTOREGRESSIVE = Way(method="none")


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What a run gave.

    Attributes:
        requests: With their outputs.
        counters: What was counted.
        chunks: As streamed.
    """

    requests: list[Request]
    counters: DecodeCounters
    chunks: list[StreamChunk]

    @property
    def outputs(self) -> list[tuple[list[int], str, str | None]]:
        return [(request.output_ids, request.text, request.finish_reason) for request in self.requests]


def decode(
    world: World,
    way: Way,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams] | SamplingParams,
    *,
    speculator: Speculator | None = None,
) -> Decoded:
    """Decode prompts with the engine core; parameters without a seed get seed 0."""
    some = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    requests = world.requests(prompts, [replace(each, seed=each.seed or 0) for each in some])
    counters = DecodeCounters()
    target = world.target_model()
    core = EngineCore(target, verification=way.speculative.verification, counters=counters)
    controller = FixedController(0 if way.method == "none" else way.num_speculative_tokens)
    chunks = list(core.run(requests, speculator or way.speculator(world, target), controller))
    assert all(request.finish_reason is not None for request in requests)
    return Decoded(requests=requests, counters=counters, chunks=chunks)


def _max_tokens(params: SamplingParams, room: int) -> int:
    return room if params.max_tokens is None else min(params.max_tokens, room)
