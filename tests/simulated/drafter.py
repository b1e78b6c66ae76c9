"""A drafter in this process: the real worker, moved on by as many passes as a test wants."""

from collections import deque
from collections.abc import Callable

from forerun.core.errors import DrafterError
from forerun.core.protocols import LanguageModel
from forerun.engine.config import SpeculativeConfig
from forerun.engine.constraint_grammar import GrammarCompiler
from forerun.engine.speculative.messages import Message, decode, encode
from forerun.engine.speculative.worker import DraftWorker, WorkerConfig

Progress = Callable[[], int]
"""Says how many passes the drafter gets done before the target's next look at the cache; -1: it has not even read."""

_MANY = 1000


def all_passes() -> int:
    """The drafter is always done before the target."""
    return _MANY


class InProcessDrafter:
    """A ``DrafterLink`` without a process.

    After each message the drafter works for as long as ``progress`` says. While the target waits, it checks the drafter
    again and again, and each check but the first since a message is worth one more pass.

    Args:
        model: The draft model.
        speculative: How drafts are made.
        vocab_size: Of the target.
        eos_ids: Of the target.
        max_depth: Most tokens per outcome.
        state_entry: Shape of what the draft reads of each position of the target; ``(0,)``: nothing.
        states_are_wide: Whether it is kept in float32.
        progress: How far it gets.
        dies_after: Number of messages after which it takes no more.
        grammars: For the constraints of requests; ``None``: it does not know them.
    """

    def __init__(
        self,
        model: LanguageModel,
        speculative: SpeculativeConfig,
        *,
        vocab_size: int,
        eos_ids: tuple[int, ...] = (),
        max_depth: int = 8,
        state_entry: tuple[int, ...] = (0,),
        states_are_wide: bool = False,
        progress: Progress = all_passes,
        dies_after: int | None = None,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        config = WorkerConfig(
            target="simulated",
            draft="simulated",
            dtype="float32",
            capacity=model.capacity,
            core=None,
            num_requests=model.num_sequences,
            max_branches=64,
            max_depth=max_depth,
            law_width=vocab_size,
            vocab_size=vocab_size,
            eos_ids=eos_ids,
            state_entry=state_entry,
            states_are_wide=states_are_wide,
            speculative=speculative,
        )
        self.vocab_size = vocab_size
        self.cache, self.states = config.views(memoryview(bytearray(config.num_bytes)))
        copy = WorkerConfig.from_json(config.to_json())
        self.worker = DraftWorker(model, self.cache, self.states, copy, grammars)
        self.messages: list[Message] = []
        self.is_closed = False
        self._inbox: deque[Message] = deque()
        self._progress, self._num_checks, self._dies_after = progress, 0, dies_after

    def send(self, message: Message) -> None:
        self._fail_if_dead()
        copy = decode(encode(message))
        self.messages.append(copy)
        self._inbox.append(copy)
        self._num_checks = 0
        passes = self._progress()
        if passes >= 0:
            self.work(passes)

    def check_alive(self, timeout_s: float) -> None:
        self._fail_if_dead()
        self._num_checks += 1
        if self._num_checks > 1:
            self.work(1)
        if self._num_checks > _MANY:
            raise DrafterError("the target waits for what will never come")

    def is_ready(self) -> bool:
        return True

    def work(self, passes: int) -> None:
        """Read all messages, then run passes while there is work."""
        while self._inbox:
            self.worker.handle(self._inbox.popleft())
        for _ in range(passes):
            if not self.worker.advance():
                return

    def close(self) -> None:
        self.is_closed = True

    def _fail_if_dead(self) -> None:
        if self.is_closed or (self._dies_after is not None and len(self.messages) >= self._dies_after):
            raise DrafterError("the simulated drafter is dead")
