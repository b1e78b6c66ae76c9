"""The drafter's process: drafts, prepares outcomes and publishes them, on a core of its own.

Started by :mod:`forerun.engine.speculative.drafter_process` as ``python -m forerun.engine.speculative.worker``. It ends
when its connection closes, so it never outlives the process that started it.
"""

import json
import mmap
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import Connection

import torch

from forerun.core.dtype_choice import DtypeName
from forerun.core.env import pin_process
from forerun.core.errors import ForerunError
from forerun.core.features import FeatureReader
from forerun.core.protocols import LanguageModel
from forerun.core.rows import Rows
from forerun.engine.config import SpeculativeConfig
from forerun.engine.constraint_grammar import GrammarCompiler
from forerun.engine.speculative.choice import DraftChoice
from forerun.engine.speculative.drafting import hand_over, run_pass
from forerun.engine.speculative.fan_out import geometric_fan_out, measured_fan_out, uniform_fan_out
from forerun.engine.speculative.messages import FinishMessage, Message, OutcomeMessage, StartMessage, decode
from forerun.engine.speculative.session import DraftSession
from forerun.engine.speculative.speculation_cache import CacheShape, SpeculationCache
from forerun.engine.speculative.target_states import StateBuffer, StateShape
from forerun.models.draft import load_draft
from forerun.models.draft_runner import build_draft
from forerun.models.load import load_checkpoint

_MIN_MEASURED = 20
"""Rounds seen before their outcomes decide the fan-out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """What the drafter's process needs to start.

    Attributes:
        target: The target's name, whose embedding a distilled draft borrows.
        draft: The draft's name.
        dtype: Kind of weights of the draft's runner.
        capacity: Slots per sequence.
        core: CPU core to pin to; ``None`` for none.
        num_requests: As in :class:`CacheShape`; ``max_branches``, ``max_depth`` and ``law_width`` alike.
        max_branches: Most outcomes per request.
        max_depth: Most tokens per outcome.
        law_width: Candidates of a law; 0 where laws are never sent.
        vocab_size: Of the target.
        eos_ids: End-of-sequence ids of the target.
        state_entry: Shape of what the target shares of each position; ``(0,)``: the draft has only its own.
        states_are_wide: As ``is_wide`` of :class:`StateShape`.
        speculative: How drafts are made and verified.
    """

    target: str
    draft: str
    dtype: DtypeName
    capacity: int
    core: int | None
    num_requests: int
    max_branches: int
    max_depth: int
    law_width: int
    vocab_size: int
    eos_ids: tuple[int, ...]
    state_entry: tuple[int, ...]
    states_are_wide: bool
    speculative: SpeculativeConfig

    @property
    def _shape(self) -> CacheShape:
        return CacheShape(**{field.name: getattr(self, field.name) for field in fields(CacheShape)})

    @property
    def _state_shape(self) -> StateShape:
        return StateShape(
            num_requests=self.num_requests,
            capacity=self.capacity,
            entry=self.state_entry,
            is_wide=self.states_are_wide,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the shared memory."""
        return self._shape.num_bytes + self._state_shape.num_bytes

    def views(self, memory: memoryview) -> tuple[SpeculationCache, StateBuffer]:
        """Return the two parts of the shared memory."""
        return (
            SpeculationCache(memory, self._shape),
            StateBuffer(memory[self._shape.num_bytes :], self._state_shape),
        )

    def to_json(self) -> str:
        """Return the configuration as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "WorkerConfig":
        """Read what :meth:`to_json` wrote."""
        content = json.loads(text)
        content |= {name: tuple(content[name]) for name in ("eos_ids", "state_entry")}
        return cls(**(content | {"speculative": SpeculativeConfig(**content["speculative"])}))


class DraftWorker:
    """Keeps one session per request; messages change them, passes advance them, progress is published.

    Args:
        model: The draft model.
        cache: The shared speculation cache.
        states: What the target shares.
        config: See :class:`WorkerConfig`.
        grammars: Of the target; ``None``: constraints are left to the target, which refuses what they forbid.
    """

    def __init__(
        self,
        model: LanguageModel,
        cache: SpeculationCache,
        states: StateBuffer,
        config: WorkerConfig,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self._model, self._cache, self._states, self._config = model, cache, states, config
        self._grammars = grammars
        self._num_states: dict[int, int] = {}
        self._sessions: dict[int, DraftSession] = {}
        self._rounds: dict[int, int] = {}
        self._published: dict[int, tuple[int, int, int]] = {}
        self._rounds_with_laws: dict[int, int] = {}
        self._accepted: Counter[int] = Counter()

    def handle(self, message: Message) -> None:
        """Take a message."""
        if isinstance(message, StartMessage):
            self._start(message)
        elif isinstance(message, OutcomeMessage):
            self._commit(message)
        else:
            self._finish(message)

    def advance(self) -> bool:
        """Run one pass and publish what it made; return whether there was work."""
        advanced = run_pass(self._model, self._sessions.values())
        for session in advanced:
            self._publish(session)
        self._cache.beat()
        return bool(advanced)

    def fan_out(self, budget: int, num_speculative_tokens: int) -> Sequence[int]:
        """Share a branch budget by the configured policy."""
        config = self._config.speculative
        if config.fan_out == "uniform":
            return uniform_fan_out(budget=budget, num_speculative_tokens=num_speculative_tokens)
        if config.fan_out == "geometric" or self._accepted.total() < _MIN_MEASURED:
            return geometric_fan_out(
                budget=budget,
                num_speculative_tokens=num_speculative_tokens,
                acceptance_rate=config.expected_acceptance_rate,
                exponent=config.fan_out_exponent,
            )
        # An outcome beyond K in an earlier, longer round would have been K accepted here.
        weights = [0.5 + self._accepted[k] for k in range(num_speculative_tokens)]
        weights.append(0.5 + sum(count for k, count in self._accepted.items() if k >= num_speculative_tokens))
        return measured_fan_out(budget=budget, accepted_weights=weights, exponent=config.fan_out_exponent)

    def _start(self, message: StartMessage) -> None:
        params, constraint = message.params, None
        if self._grammars is not None and params.constraint is not None:
            with suppress(ForerunError):  # what can't be known here is left to the target, too
                constraint = self._grammars.state(params.constraint, ending_ids=params.ending_ids(self._config.eos_ids))
        choice = DraftChoice(
            params,
            self._config.speculative,
            message.prompt_ids,
            frozenset(self._config.eos_ids),
            vocab_size=self._config.vocab_size,
            vocab_ids=self._model.vocab_ids,
            request_number=message.number,
            constraint=constraint,
        )
        session = DraftSession(
            sequence=message.request,
            prompt_ids=message.prompt_ids,
            choice=choice,
            capacity=self._model.capacity,
            fan_out=self.fan_out,
            is_joint=self._config.speculative.fan_out == "joint",
            reads_features=isinstance(self._model, FeatureReader),
        )
        for token in message.output_ids:
            session.commit(0, token)
        session.prepare(branch_budget=message.branch_budget, max_depth=message.max_depth)
        self._sessions[message.request] = session
        self._num_states[message.request] = 0
        self._begin_round(message.request, message.round_number)

    def _commit(self, message: OutcomeMessage) -> None:
        session = self._sessions[message.request]
        if session.speculation:
            self._accepted[message.num_accepted] += 1
        branch = None if message.branch < 0 else message.branch
        moves = session.commit(message.num_accepted, message.token, branch=branch, num_used=message.num_used)
        if moves:
            self._model.move_slots(message.request, [source for source, _ in moves], [target for _, target in moves])
        self._share(session)
        if message.proposed:
            session.propose(message.proposed)
        session.prepare(branch_budget=message.branch_budget, max_depth=message.max_depth)
        session.draft(max(message.num_draft, len(session.speculation)))
        self._begin_round(message.request, message.round_number)
        self._publish_laws(session)

    def _finish(self, message: FinishMessage) -> None:
        self._sessions.pop(message.request, None)

    def _share(self, session: DraftSession) -> None:
        """Put what the target has computed for what is now accepted in the place of the draft's own."""
        if 0 in self._config.state_entry:
            return
        request, stop = session.sequence, session.num_committed - 1
        start = self._num_states[request]
        hand_over(self._model, session, start, self._states.get(request, start, stop))
        self._num_states[request] = stop

    def _begin_round(self, request: int, round_number: int) -> None:
        self._rounds[request] = round_number
        self._published[request] = (-1, -1, -1)
        self._cache.clear(request, round_number)

    def _publish(self, session: DraftSession) -> None:
        request = session.sequence
        num_drafted, num_branches, depth = self._published[request]
        if len(session.speculation) != num_drafted:
            self._cache.put_draft(request, session.speculation)
            num_drafted = len(session.speculation)
            self._publish_laws(session)
        if session.branches and num_branches < 0:
            num_branches = len(session.branches)
            self._cache.put_outcomes(request, [(branch.num_accepted, branch.token) for branch in session.branches])
        if session.depth > max(depth, 0):
            depth = session.depth
            self._cache.put_tokens(
                request, depth, [branch.tokens[-1] for branch in session.branches if len(branch.tokens) == depth]
            )
        self._published[request] = (num_drafted, num_branches, depth)

    def _publish_laws(self, session: DraftSession) -> None:
        request = session.sequence
        if not session.choice.needs_laws or session.is_drafting or not session.laws:
            return
        laws = [law for law in session.laws if law is not None]
        if len(laws) == len(session.laws) and self._rounds_with_laws.get(request) != self._rounds[request]:
            self._rounds_with_laws[request] = self._rounds[request]
            self._cache.put_laws(request, self._rounds[request], laws)


def serve(connection: Connection, worker: DraftWorker) -> None:
    """Handle messages and work until the connection closes, whichever way it does; messages go first."""
    is_busy = True
    try:
        while True:
            while connection.poll(0 if is_busy else None):
                worker.handle(decode(connection.recv_bytes()))
                is_busy = True
            is_busy = worker.advance()
    except (EOFError, OSError):
        return


def main() -> int:
    """Run the process: file descriptors of connection and memory, and the configuration, come as arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection_fd, memory_fd, text = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    connection = Connection(connection_fd)
    config = WorkerConfig.from_json(text)
    torch.set_num_threads(1)
    if config.core is not None:
        pin_process(config.core)
    try:
        target = load_checkpoint(config.target)
        draft = load_draft(config.draft, target)
        model = build_draft(draft, dtype=config.dtype, num_sequences=config.num_requests, capacity=config.capacity)
    except ForerunError as error:
        _answer(connection, {"kind": type(error).__name__, "error": str(error)})
        return 2
    # The first pass and the first move load or compile kernels, which later would look like a drafter that hangs.
    model.forward(Rows.chains([(0, 0, [0])]))
    model.move_slots(0, [0], [0])
    model.write_states(0, 0, model.read_states(0, 0, 1, layer_ids=range(draft.config.num_layers)))
    memory = mmap.mmap(memory_fd, config.num_bytes)
    os.close(memory_fd)
    grammars = GrammarCompiler(target.tokenizer, vocab_size=config.vocab_size)
    worker = DraftWorker(model, *config.views(memoryview(memory)), config, grammars)
    _answer(connection, {"ready": True})
    serve(connection, worker)
    return 0


def _answer(connection: Connection, content: dict[str, object]) -> None:
    """Report how loading went; if nobody is there to hear it, :func:`serve` will notice."""
    with suppress(OSError):
        connection.send_bytes(json.dumps(content).encode())


if __name__ == "__main__":
    sys.exit(main())
