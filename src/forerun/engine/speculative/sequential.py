"""Speculators that draft while the target waits: by a model (SD), or by n-gram look-up."""

from collections.abc import Callable, Sequence

from forerun.core.features import FeatureReader
from forerun.core.protocols import LanguageModel
from forerun.engine.law import ProcessedLaw
from forerun.engine.request import Request
from forerun.engine.speculative.choice import DraftChoice
from forerun.engine.speculative.drafting import hand_over, run_pass
from forerun.engine.speculative.ngram import context_continuation
from forerun.engine.speculative.session import DraftSession
from forerun.engine.speculative.speculator import Speculation
from forerun.engine.speculative.target_states import TargetStates

MakeChoice = Callable[[Request], DraftChoice]


class SequentialSpeculator:
    """Speculative decoding as published: K draft passes, then one target pass.

    A draft reads a text when it is first asked about it; only that of a request by itself is read ahead, before the
    target does. So where no drafts are asked for, as among many requests, none costs anything.

    Args:
        model: The draft model, with a sequence for each of the target's.
        make_choice: Gives a request's way to choose draft tokens.
        states: Of the target, where the draft reads them; ``None``: it has only its own.

    Reference:
        Leviathan et al. 2022 (arXiv 2211.17192); Chen et al. 2023 (arXiv 2302.01318).
    """

    def __init__(self, model: LanguageModel, make_choice: MakeChoice, *, states: TargetStates | None = None) -> None:
        self._model, self._make_choice, self._states = model, make_choice, states
        self.is_alive = True
        self._sessions: dict[int, DraftSession | None] = {}

    def start(self, request: Request) -> None:
        """Compute the prompt's keys and values ahead of the first round, unless the target does or others are there."""
        is_alone = not self._sessions
        self._sessions[request.index] = None
        if is_alone and self._states is None:
            session = self._session(request)
            while run_pass(self._model, [session]):
                pass

    def speculate(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Speculation]:
        """Draft for all requests together, one token per pass."""
        sessions = [
            self._up_to_date(request, limit) for request, limit in zip(requests, limits, strict=True) if limit > 0
        ]
        while drafting := [session for session in sessions if session.is_drafting]:
            run_pass(self._model, drafting)
        drafted = iter(sessions)
        return [Speculation(token_ids=tuple(next(drafted).speculation) if limit > 0 else ()) for limit in limits]

    def prepare(self) -> None:
        """Nothing is drafted before it is asked for."""

    def laws(self, request: Request, speculation: Speculation) -> Sequence[ProcessedLaw | None]:
        """Return the laws the draft was drawn from."""
        return self._session(request).laws[: len(speculation.token_ids)]

    def observe(self, request: Request, num_accepted: int) -> None:
        """Roll the draft's cache back to the outcome; where nothing was drafted, the next draft catches up."""
        session = self._sessions[request.index]
        if session is not None and session.speculation:
            session.commit(num_accepted, request.output_ids[-1])

    def finish(self, request: Request) -> None:
        """Forget a request."""
        self._sessions.pop(request.index, None)
        if self._states is not None:
            self._states.forget(request)

    def close(self) -> None:
        """Nothing to release."""

    def _session(self, request: Request) -> DraftSession:
        session = self._sessions[request.index]
        if session is None:
            session = self._sessions[request.index] = DraftSession(
                sequence=request.sequence,
                prompt_ids=request.prompt_ids,
                choice=self._make_choice(request),
                capacity=self._model.capacity,
                fan_out=lambda budget, num_tokens: (0,) * (num_tokens + 1),
                reads_features=isinstance(self._model, FeatureReader),
            )
        return session

    def _up_to_date(self, request: Request, limit: int) -> DraftSession:
        """Return a request's session, brought up to its text and asked for a draft."""
        session = self._session(request)
        # The first token, those of rounds without a draft, and of a request that was taken over all that it had.
        for token in request.output_ids[session.num_committed - len(request.prompt_ids) :]:
            session.commit(0, token)
        if self._states is not None:
            hand_over(self._model, session, *self._states.take(request))
        session.draft(limit)
        return session


class NgramSpeculator:
    """Drafts by look-up in prompt and output: free, and good where text repeats itself."""

    is_alive = True

    def start(self, request: Request) -> None:
        """Nothing to prepare."""

    def speculate(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Speculation]:
        """Look each context up."""
        return [
            Speculation(token_ids=tuple(context_continuation(request, num_tokens=limit)), laws_at="nowhere")
            for request, limit in zip(requests, limits, strict=True)
        ]

    def prepare(self) -> None:
        """Nothing is drafted before it is asked for."""

    def laws(self, request: Request, speculation: Speculation) -> Sequence[ProcessedLaw | None]:
        """Return one-hot laws: nothing was drawn by chance."""
        return [None] * len(speculation.token_ids)

    def observe(self, request: Request, num_accepted: int) -> None:
        """Nothing to learn."""

    def finish(self, request: Request) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to release."""
