"""Replicas of the engine under Ray Serve: it places them, asks after their health and begins dead ones anew."""

import os
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from starlette.types import Message

from forerun.core.dependencies import import_optional
from forerun.core.env import available_cores
from forerun.core.errors import ConfigError, EngineOverloadedError, EngineStoppedError, ServingError
from forerun.engine.config import EngineConfig
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.replica import ForwardedRequest, Replica, replica_logging
from forerun.engine.server.replica_config import ReplicaConfig

_APPLICATION: Final = "forerun"
_ROUTER: Final = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


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


@contextmanager
def ray_replicas(config: ServerConfig, engine: EngineConfig, replicas: ReplicaConfig) -> Generator["RayReplicas"]:
    """Run replicas; all have loaded their models when they are handed over, and end with the context.

    Args:
        config: The server's.
        engine: Of each replica, but for its cores.
        replicas: How many.

    Raises:
        ConfigError: There is no cluster at the address, or this machine has too few cores.
        MissingDependencyError: Ray Serve is not installed.
        ServingError: Ray or a replica did not start.
    """
    pool = engine.cores or available_cores()
    num_cores = replicas.num_cores(len(pool))
    ray: Any = import_optional("ray", extra="ray", purpose="a server with replicas")
    for package in ("fastapi", "grpc_reflection", "mmh3", "ray.serve"):
        import_optional(package, extra="ray", purpose="a server with replicas")
    settings = {name: value for name, value in os.environ.items() if name.startswith("FORERUN_")}
    is_ours = replicas.ray_address is None
    try:
        ray.init(
            address=replicas.ray_address,
            num_cpus=len(pool) if is_ours else None,
            include_dashboard=False if is_ours else None,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": settings} if settings else None,
        )
    except ConnectionError as error:
        raise ConfigError(f"ray_address={replicas.ray_address!r}: no Ray cluster answers there ({error})") from error
    try:
        yield RayReplicas(ray, config, engine, replicas, num_cores=num_cores)
    finally:
        if is_ours:
            ray.serve.shutdown()
        else:
            ray.serve.delete(_APPLICATION)
        ray.shutdown()


class RayReplicas:
    """A deployment on Ray Serve, and the way to it.

    Args:
        ray: The package, connected.
        config: The server's.
        engine: Of each replica.
        replicas: How many.
        num_cores: Cores of each.

    Raises:
        ServingError: A replica did not start.
    """

    def __init__(
        self, ray: Any, config: ServerConfig, engine: EngineConfig, replicas: ReplicaConfig, *, num_cores: int
    ) -> None:
        self._ray, self._serve = ray, ray.serve
        quiet = {"log_level": "ERROR", "enable_access_log": False}
        self._serve.start(proxy_location="Disabled", logging_config=quiet)
        at_once = engine.max_num_seqs
        scaling = {
            "min_replicas": replicas.replicas,
            "max_replicas": replicas.most,
            "target_ongoing_requests": max(1, at_once // 2),
        }
        deployment = self._serve.deployment(
            name="engine",
            num_replicas=replicas.replicas if replicas.most == replicas.replicas else None,
            autoscaling_config=scaling if replicas.most > replicas.replicas else None,
            ray_actor_options={"num_cpus": num_cores},
            max_ongoing_requests=at_once,
            max_queued_requests=config.max_waiting,
            graceful_shutdown_timeout_s=config.drain_timeout_s,
            health_check_period_s=2,
            request_router_config={"request_router_class": _ROUTER},
            logging_config=quiet,
        )(_deployed(config, engine, num_cores=num_cores))
        try:
            self._handle = self._serve.run(deployment.bind(), name=_APPLICATION, route_prefix=None)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ServingError(f"a replica did not start ({reason}); try the same without --replicas") from error

    async def ask(self, request: ForwardedRequest, key: str) -> AsyncGenerator[Message]:
        """Yield a replica's answer, see :meth:`forerun.engine.server.replica.Replica.answer`.

        Args:
            request: The request.
            key: Requests with the same key go to the same replica while it has room; empty: to any.

        Raises:
            EngineOverloadedError: Too many wait.
            EngineStoppedError: The replica ended before its answer did, or there is none.
        """
        exceptions = self._serve.exceptions
        answer: Any = self._handle.options(stream=True, session_id=key).answer.remote(request)
        try:
            async for message in answer:
                yield message
        except exceptions.BackPressureError as error:
            raise EngineOverloadedError("too many completions wait; come back later") from error
        except (self._ray.exceptions.RayError, exceptions.RayServeException) as error:
            raise EngineStoppedError("the replica that answered has ended; ask again") from error
        finally:
            answer.cancel()

    def num_running(self) -> int:
        """Return how many replicas can answer."""
        application = self._serve.status().applications.get(_APPLICATION)
        if application is None:
            return 0
        return sum(states.replica_states.get("RUNNING", 0) for states in application.deployments.values())


def _deployed(config: ServerConfig, engine: EngineConfig, *, num_cores: int) -> type:
    """Return the class that Ray Serve makes a replica of, in a process of its own."""
    config = replace(config, api_keys=(), cors_origins=())

    class Deployed(Replica):
        """A replica that finds its cores."""

        async def __init__(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] (Ray Serve awaits it)
            from ray import serve

            from forerun.engine.resources import EngineResources

            replica_logging()
            context: Any = serve.get_replica_context()
            pool = engine.cores or available_cores()
            cores = core_share(pool, rank=context.rank.local_rank, size=num_cores)
            super().__init__(EngineResources(replace(engine, cores=cores)), config, name=context.replica_id.unique_id)
            self.start()

        async def __del__(self) -> None:
            await self.close()

    return Deployed
