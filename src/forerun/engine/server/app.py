"""The ASGI application over an engine in this process: its routes, and the engine's life."""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from forerun.engine.server.bridge import AsyncEngine
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.engine_thread import Resources
from forerun.engine.server.gate import Gate
from forerun.engine.server.metrics import ServerMetrics
from forerun.engine.server.routes import Routes
from forerun.engine.server.site import application, page_routes


class ServerApp:
    """The application and the engine behind it.

    Args:
        resources: Loaded models, used from the first request on; closed with the application.
        config: The server's.

    Attributes:
        engine: The engine.
        metrics: What is counted.
        application: Routes and errors, without id, count and log line: for who has seen to these.
        asgi: What an ASGI server runs; its lifespan starts and ends the engine.
    """

    def __init__(self, resources: Resources, config: ServerConfig) -> None:
        self.metrics = ServerMetrics()
        self.engine = AsyncEngine(resources, config, self.metrics)
        model = config.model_name or _model_name(resources.config.target)
        routes = _routes(Routes(self.engine, self.metrics, model=model, created=int(time.time())))
        self.application: ASGIApp = application([*page_routes(), *routes], config, lifespan=self._lifespan)
        paths = ["/", "/openapi.json", *(route.path for route in routes if "{" not in route.path)]
        self.asgi: ASGIApp = Gate(self.application, self.metrics, routes=paths)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncGenerator[None]:
        self.engine.start()
        try:
            yield
        finally:
            await self.engine.close()


def _routes(routes: Routes) -> list[Route]:
    return [
        Route("/v1/completions", routes.completions, methods=["POST"]),
        Route("/v1/chat/completions", routes.chat_completions, methods=["POST"]),
        Route("/v1/models", routes.models),
        Route("/v1/models/{name:path}", routes.model),
        Route("/tokenize", routes.tokenize, methods=["POST"]),
        Route("/detokenize", routes.detokenize, methods=["POST"]),
        Route("/health", routes.health),
        Route("/ready", routes.ready),
        Route("/metrics", routes.metrics),
    ]


def _model_name(target: str) -> str:
    if target == "default":
        return "SmolLM2-135M-Instruct"
    path = Path(target)
    return path.stem if path.suffix == ".gguf" else path.name or target
