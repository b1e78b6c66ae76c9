"""How many completions a call draws, and which of them it returns."""

from collections.abc import Sequence
from dataclasses import dataclass

from forerun.engine.outputs import TokenLogprob
from forerun.engine.server.api_error import ApiError
from forerun.engine.server.schemas import ChatRequest, CompletionRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoicePlan:
    """What becomes of each prompt.

    Attributes:
        num_drawn: Completions that are decoded.
        num_returned: Of them, those returned: the ones with the highest log-probability per token.
        echoes: Whether the prompt stands before each.
    """

    num_drawn: int = 1
    num_returned: int = 1
    echoes: bool = False

    @property
    def ranks(self) -> bool:
        """Whether log-probabilities are needed to choose."""
        return self.num_drawn > self.num_returned

    def returned(self, logprobs: Sequence[Sequence[TokenLogprob]]) -> list[int]:
        """Return the places of the completions to return, prompt by prompt.

        Args:
            logprobs: Of every completion drawn, in order.
        """
        if not self.ranks:
            return list(range(len(logprobs)))
        places: list[int] = []
        for start in range(0, len(logprobs), self.num_drawn):
            group = range(start, start + self.num_drawn)
            best = sorted(group, key=lambda place: -_mean_nats(logprobs[place]))
            places += best[: self.num_returned]
        return places


def choice_plan(body: CompletionRequest | ChatRequest, *, num_prompts: int, max_choices: int) -> ChoicePlan:
    """Return what a body asks for.

    Args:
        body: The request.
        num_prompts: It has so many.
        max_choices: Most completions of one request.

    Raises:
        ApiError: 400: too many, or fields that contradict each other.
    """
    num_returned = num_drawn = body.n or 1
    echoes = False
    if isinstance(body, CompletionRequest):
        num_drawn, echoes = body.best_of or num_returned, bool(body.echo)
        if num_drawn < num_returned:
            raise ApiError(400, f"best_of={num_drawn} with n={num_returned}: must be at least n", param="best_of")
        if num_drawn > num_returned and body.stream:
            raise ApiError(400, "best_of: the best are known at the end only; leave out stream", param="best_of")
        if echoes and body.logprobs is not None:
            raise ApiError(400, "echo with logprobs: a prompt's tokens get none; leave out either", param="echo")
    if num_prompts * num_drawn > max_choices:
        raise ApiError(
            400,
            f"{num_prompts} prompts with {num_drawn} completions each: at most {max_choices} completions a request; "
            "ask for fewer",
            param="n" if num_drawn == num_returned else "best_of",
        )
    return ChoicePlan(num_drawn=num_drawn, num_returned=num_returned, echoes=echoes)


def _mean_nats(logprobs: Sequence[TokenLogprob]) -> float:
    return sum(some.logprob_nats for some in logprobs) / max(1, len(logprobs))
