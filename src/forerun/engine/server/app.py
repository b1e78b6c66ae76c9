"""The ASGI application: routes, errors in OpenAI's shape, the page, and the engine's life."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from forerun.engine.server.api_error import ApiError
from forerun.engine.server.bridge import AsyncEngine
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.engine_thread import Resources
from forerun.engine.server.gate import Gate
from forerun.engine.server.metrics import ServerMetrics
from forerun.engine.server.openapi import openapi_document
from forerun.engine.server.routes import Routes

_WEB = Path(__file__).parent / "web"
GUARDED = ("/v1/", "/tokenize", "/detokenize")
"""Beginnings of paths that need a key, if there are keys."""


class ServerApp:
    """The application and the engine behind it.

    Args:
        resources: Loaded models, used from the first request on; closed with the application.
        config: The server's.

    Attributes:
        engine: The engine.
        metrics: What is counted.
        application: Routes and errors, for who has let requests in already.
        asgi: What an ASGI server runs; its lifespan starts and ends the engine.
    """

    def __init__(self, resources: Resources, config: ServerConfig) -> None:
        self.metrics = ServerMetrics()
        self.engine = AsyncEngine(resources, config, self.metrics)
        model = config.model_name or _model_name(resources.config.target)
        routes = _routes(Routes(self.engine, self.metrics, model=model, created=int(time.time())))
        self.application: ASGIApp = application([*page_routes(), *routes], config, lifespan=self._lifespan)
        paths = ["/", "/openapi.json", *(route.path for route in routes if "{" not in route.path)]
        self.asgi: ASGIApp = Gate(self.application, config, self.metrics, routes=paths, guarded=GUARDED)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncGenerator[None]:
        self.engine.start()
        try:
            yield
        finally:
            await self.engine.close()


def application(
    routes: Sequence[BaseRoute],
    config: ServerConfig,
    *,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
) -> Starlette:
    """Return an application with errors in OpenAI's shape, and the origins that are let in."""
    middleware = [
        Middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
        )
    ]
    return Starlette(
        routes=routes,
        middleware=middleware if config.cors_origins else [],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _unexpected_error},
        lifespan=lifespan,
    )


def page_routes() -> list[BaseRoute]:
    """Return the routes that no engine is needed for: the page, and the API's description."""
    document = openapi_document()

    async def openapi(_: Request) -> Response:
        return JSONResponse(document)

    async def page(_: Request) -> Response:
        return FileResponse(_WEB / "index.html")

    return [Route("/", page), Route("/openapi.json", openapi), Mount("/web", StaticFiles(directory=_WEB))]


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


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _unexpected_error(_: Request, __: Exception) -> Response:
    return ApiError(500, "an error of the server; its log has the traceback").response()
