"""Shares of a model as threads of this process, driven as processes are: one leads, the others follow."""

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from forerun.models.leading_runner import LeadingRunner, follow
from forerun.models.tensor_parallel import TensorParallelRunner

PATIENCE_S = 15


class Meeting:
    """Where threads leave values for each other."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=PATIENCE_S)
        self.values: list[Tensor | None] = [None] * size


class ThreadCollective:
    """A ``Collective`` between threads."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.size, self._meeting = rank, meeting.size, meeting

    def gather(self, values: Tensor) -> list[Tensor]:
        self._meeting.values[self.rank] = values
        self._meeting.barrier.wait()
        everyone = [some.clone() for some in self._meeting.values if some is not None]
        self._meeting.barrier.wait()  # none goes on before all have read
        return everyone

    def sum(self, values: Tensor) -> Tensor:
        return torch.stack(self.gather(values)).sum(dim=0)

    def send(self, values: Tensor) -> Tensor:
        if self.rank == 0:
            self._exchange(values)
            return values
        return self._exchange(None)

    def _exchange(self, values: Tensor | None) -> Tensor:
        if values is not None:
            self._meeting.values[0] = values
        self._meeting.barrier.wait()
        sent = self._meeting.values[0]
        assert sent is not None
        sent = sent.clone()
        self._meeting.barrier.wait()
        return sent


class LedRunner(LeadingRunner):
    """The leading share; its followers end with it."""

    def __init__(self, runner: TensorParallelRunner, collective: ThreadCollective) -> None:
        super().__init__(runner, collective)

    def __del__(self) -> None:
        self.close()


def led_by_first(build: Callable[[ThreadCollective], TensorParallelRunner], *, size: int) -> LedRunner:
    """Build every share, let all but the first follow, and return the first."""
    meeting = Meeting(size)
    collectives = [ThreadCollective(rank, meeting) for rank in range(size)]
    shares = [build(collective) for collective in collectives]
    for share, collective in zip(shares[1:], collectives[1:], strict=True):
        threading.Thread(target=follow, args=(share, collective), daemon=True).start()
    return LedRunner(shares[0], collectives[0])
