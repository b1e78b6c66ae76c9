"""A replica as Ray Serve begins it, in a process of its own; the front, which only names it, loads no model code."""

import logging
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from starlette.types import Message

from forerun.core.env import available_cores
from forerun.engine.config import EngineConfig
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.forwarded_request import ForwardedRequest
from forerun.engine.server.json_log import LOGGER


def core_share(cores: tuple[int, ...], *, rank: int, size: int) -> tuple[int, ...] | None:
    """Return the cores of one replica of a machine.

    Args:
        cores: The machine's.
        rank: Of the replica among those on the machine.
        size: Cores of each.

    Returns:
        ``None`` where there are not so many: the system spreads the replica then.
    """
    share = cores[rank * size : (rank + 1) * size]
    return share if len(share) == size else None


class RayReplica:
    """A :class:`forerun.engine.server.replica.Replica` that finds its cores; Ray Serve calls its methods.

    Args:
        config: The server's, less what the front does.
        engine: The engine's, but for its cores.
        num_cores: How many it gets.
    """

    async def __init__(  # pyright: ignore[reportGeneralTypeIssues] (Ray Serve awaits it, on the loop that answers)
        self, config: ServerConfig, engine: EngineConfig, num_cores: int
    ) -> None:
        from ray import serve

        from forerun.engine.resources import EngineResources
        from forerun.engine.server.replica import Replica

        LOGGER.setLevel(logging.WARNING)  # the front logs requests
        context: Any = serve.get_replica_context()
        cores = core_share(engine.cores or available_cores(), rank=context.rank.local_rank, size=num_cores)
        resources = EngineResources(replace(engine, cores=cores))
        self._replica = Replica(resources, config, name=context.replica_id.unique_id)
        self._replica.start()

    async def answer(self, request: ForwardedRequest) -> AsyncGenerator[Message]:
        """As :meth:`forerun.engine.server.replica.Replica.answer`."""
        messages = self._replica.answer(request)
        try:
            async for message in messages:
                yield message
        finally:
            await messages.aclose()

    async def metrics(self) -> tuple[str, str]:
        """As :meth:`forerun.engine.server.replica.Replica.metrics`."""
        return self._replica.metrics()

    def check_health(self) -> None:
        """As :meth:`forerun.engine.server.replica.Replica.check_health`."""
        self._replica.check_health()

    async def __del__(self) -> None:
        await self._replica.close()
