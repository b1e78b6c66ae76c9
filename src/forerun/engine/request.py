"""A request inside the engine: its tokens, its parameters, and where it stands."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from forerun.core.selection import Choice
from forerun.engine.logits import LogitsProcessor
from forerun.engine.outputs import FinishReason, TokenLogprob, TokenOrigin
from forerun.engine.sampling import SamplingParams
from forerun.engine.stop import OutputTracker


@dataclass(slots=True, eq=False)
class Request:
    """One prompt being decoded.

    Attributes:
        index: Which prompt of the call.
        number: Keys its noise, with the seed.
        prompt_ids: The prompt.
        params: Sampling parameters; seed set.
        processor: Turns the target's logits into its laws.
        tracker: Finds the end, and the text.
        max_tokens: Most output tokens, by the parameters and the room in the context.
        round_number: Grows by one per verification, from a number that no other request of the engine has used.
        priority: Smaller goes first.
        cache_salt: What it computes is shared with requests of the same salt only.
        records_outcomes: Whether chunks tell which outcomes were prepared.
        sequence: Its sequence in the target's cache; -1 while it waits.
        num_prefilled: Tokens, from its start, that the sequence held when it began to decode, or holds so far.
        output_ids: Tokens decided so far.
        origins: One for each output token.
        logprobs: One for each output token where asked for.
        text: The text so far.
        finish_reason: Set at the end.
        error: Why it could not go on, if it could not.
        choice: How its tokens are chosen where nothing else shapes its law, as of when it was made.
        has_plain_law: Whether nothing else does, as :attr:`forerun.engine.sampling.SamplingParams.has_plain_law`.
    """

    index: int
    number: int
    prompt_ids: Sequence[int]
    params: SamplingParams
    processor: LogitsProcessor
    tracker: OutputTracker
    max_tokens: int
    round_number: int
    priority: int = 0
    cache_salt: str = ""
    records_outcomes: bool = False
    sequence: int = -1
    num_prefilled: int = 0
    output_ids: list[int] = field(default_factory=list[int])
    origins: list[TokenOrigin] = field(default_factory=list["TokenOrigin"])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    text: str = ""
    finish_reason: FinishReason | None = None
    error: str | None = None
    choice: Choice = field(init=False)
    has_plain_law: bool = field(init=False)

    def __post_init__(self) -> None:
        params = self.params
        self.choice = Choice(
            temperature=params.temperature,
            seed=params.seed or 0,
            request=self.number,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
        )
        self.has_plain_law = params.has_plain_law

    @property
    def num_computed_tokens(self) -> int:
        """Tokens whose keys and values the target's cache holds: all but the last."""
        return len(self.prompt_ids) + len(self.output_ids) - 1

    @property
    def is_resumed(self) -> bool:
        """Whether tokens are decided, so that one who takes it over now does not begin at the prompt's end."""
        return bool(self.output_ids)

    def computed_tokens(self) -> list[int]:
        """Return the tokens whose keys and values a sequence must hold for it to decode: see num_computed_tokens."""
        return [*self.prompt_ids, *self.output_ids[:-1]]

    @property
    def num_remaining_tokens(self) -> int:
        """Tokens that may still come."""
        return self.max_tokens - len(self.output_ids)

    def append(self, token_ids: Sequence[int], origins: Sequence[TokenOrigin], logprobs: Sequence[TokenLogprob]) -> str:
        """Add decided tokens up to the end of the request.

        Returns:
            Text that can be shown now.
        """
        step = self.tracker.push(token_ids)
        self.output_ids += token_ids[: step.num_kept]
        self.origins += origins[: step.num_kept]
        self.logprobs += logprobs[: step.num_kept]
        self.text += step.text
        self.finish_reason = step.finish_reason
        return step.text

    def end(self, reason: FinishReason, error: str | None = None) -> str:
        """End the request where it is, unless it has ended.

        Args:
            reason: ``cancelled`` or ``error``.
            error: Why it can't go on.

        Returns:
            Text that was held back.
        """
        if self.finish_reason is None:
            self.error = error
        step = self.tracker.end(reason)
        self.text += step.text
        self.finish_reason = step.finish_reason
        return step.text
