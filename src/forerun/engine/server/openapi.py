"""The API's description in OpenAPI, made from the schemas that requests are checked with."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import forerun
from forerun.engine.server.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

_POSTS: dict[str, tuple[str, type[BaseModel]]] = {
    "/v1/completions": ("Continue prompts", CompletionRequest),
    "/v1/chat/completions": ("Answer a conversation", ChatRequest),
    "/tokenize": ("Cut a text into tokens", TokenizeRequest),
    "/detokenize": ("Return the text of tokens", DetokenizeRequest),
}
_STREAMED = frozenset({"/v1/completions", "/v1/chat/completions"})
_GETS = {
    "/v1/models": ("List the model", "application/json"),
    "/health": ("Whether the engine lives", "application/json"),
    "/ready": ("Whether requests are taken", "application/json"),
    "/metrics": ("Metrics in Prometheus's text format", "text/plain"),
}
_ERRORS = {
    "400": "A field is at fault",
    "401": "No valid key",
    "403": "A name that is not this server's",
    "404": "Another model",
    "408": "The body is too slow",
    "413": "Too large",
    "415": "Not JSON",
    "429": "Too many wait; Retry-After says when to come back",
    "500": "An error of the server",
    "501": "Constrained output, and the package for it is not installed",
    "503": "Shutting down",
    "504": "Not done in time",
}
_GET_ERRORS = {status: _ERRORS[status] for status in ("401", "403")}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def openapi_document() -> dict[str, Any]:
    """Return the description as JSON types."""
    _, schemas = models_json_schema(
        [(schema, "validation") for _, schema in _POSTS.values()], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {
        path: {"get": {"summary": summary, "responses": _answers(kind, errors=_GET_ERRORS)}}
        for path, (summary, kind) in _GETS.items()
    }
    for path, (summary, schema) in _POSTS.items():
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema.__name__}"}}}
        kinds = ("application/json", "text/event-stream") if path in _STREAMED else ("application/json",)
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": content},
                "responses": _answers(*kinds, errors=_ERRORS),
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Forerun", "version": forerun.__version__},
        "paths": paths,
        "components": {"schemas": schemas["$defs"] | {"Error": _ERROR}},
    }


def _answers(*kinds: str, errors: Mapping[str, str]) -> dict[str, Any]:
    """Return what a route may answer: with these content types if all is well."""
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    answers: dict[str, Any] = {"200": {"description": "OK", "content": {kind: {} for kind in kinds}}}
    return answers | {status: {"description": meaning, "content": refused} for status, meaning in errors.items()}
