"""What every server of ours has, with engines in this process or elsewhere: the page, the description, errors."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from forerun.engine.server.api_error import ApiError
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.host_check import HostCheck
from forerun.engine.server.key_check import KeyCheck
from forerun.engine.server.openapi import openapi_document

_WEB = Path(__file__).parent / "web"
_GUARDED = ("/v1/", "/tokenize", "/detokenize")
"""Beginnings of paths that need a key, if there are keys."""


def application(
    routes: Sequence[BaseRoute],
    config: ServerConfig,
    *,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
) -> Starlette:
    """Return an application with errors in OpenAI's shape, for the names, origins and keys that are let in."""
    origins = Middleware(
        CORSMiddleware,
        allow_origins=list(config.cors_origins),
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-request-id"],
        expose_headers=["retry-after", "x-request-id"],
    )
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(HostCheck, config),
            *([origins] if config.cors_origins else []),
            Middleware(KeyCheck, keys=config.api_keys, guarded=_GUARDED),
        ],
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


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {str(request.scope['path'])[:200]}: {error.detail}"
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _unexpected_error(_: Request, __: Exception) -> Response:
    return ApiError(500, "an error of the server; its log has the traceback").response()
