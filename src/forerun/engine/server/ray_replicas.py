"""Replicas of the engine under Ray Serve: it places them, asks after their health and begins dead ones anew."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from starlette.types import Message

from forerun.core.dependencies import import_optional
from forerun.core.env import available_cores
from forerun.core.errors import ConfigError, EngineOverloadedError, EngineStoppedError, ServingError
from forerun.core.ray_session import connect_ray
from forerun.engine.config import EngineConfig
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.forwarded_request import ForwardedRequest
from forerun.engine.server.json_log import LOGGER
from forerun.engine.server.ray_replica import RayReplica
from forerun.engine.server.replica_config import ReplicaConfig

_APPLICATION: Final = "forerun"
_METRICS_S: Final = 2
"""For all replicas to tell their metrics: who reads them asks again soon."""
_ROUTER: Final = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


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
    if config.max_waiting < 1:
        raise ConfigError(
            f"max_waiting={config.max_waiting} with replicas: Ray Serve lets every request wait for a moment; give at "
            "least 1, better as many as come at once"
        )
    purpose = "a server with replicas"
    for package in ("ray", "fastapi", "grpc_reflection", "mmh3", "ray.serve"):
        import_optional(package, extra="ray", purpose=purpose)
    told = logging.getLogger("ray.serve")  # its own lines are no JSON, and most are no news
    told.handlers, told.propagate, told.level = LOGGER.handlers, False, logging.ERROR
    ray = connect_ray(
        address=replicas.ray_address,
        num_cpus=len(pool),
        purpose=purpose,
        option="ray_address",
        failure=ServingError,
        otherwise="serve with one engine",
    )
    try:
        yield RayReplicas(ray, config, engine, replicas, num_cores=num_cores)
    finally:
        if replicas.ray_address is None:
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
            max_constructor_retry_count=replicas.replicas,  # one that can't load its model says so at once
            graceful_shutdown_wait_loop_s=0.1,  # the front has drained
            graceful_shutdown_timeout_s=config.drain_timeout_s,
            health_check_period_s=2,
            request_router_config={"request_router_class": _ROUTER},
            logging_config=quiet,
        )(RayReplica)
        application = deployment.bind(
            replace(config, api_keys=(), cors_origins=(), allowed_hosts=()), engine, num_cores
        )
        try:
            self._handle = self._serve.run(application, name=_APPLICATION, route_prefix=None)
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
        except (GeneratorExit, asyncio.CancelledError):  # nobody listens any more
            answer.cancel()
            raise

    async def metrics(self) -> dict[str, str]:
        """Return the metrics of each replica that answers in time, by its name."""
        asked: Any = self._handle.broadcast("metrics")
        try:
            told = await asked.results_async(timeout_s=_METRICS_S, return_exceptions=True)
        except (TimeoutError, self._serve.exceptions.RayServeException):
            return {}
        return dict(some for some in told if not isinstance(some, Exception))

    def num_running(self) -> int:
        """Return how many replicas can answer."""
        application = self._serve.status().applications.get(_APPLICATION)
        if application is None:
            return 0
        return sum(states.replica_states.get("RUNNING", 0) for states in application.deployments.values())
