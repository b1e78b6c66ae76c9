"""The API's description in OpenAPI, made from the schemas that requests are checked with."""

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
_GETS = {
    "/v1/models": "List the model",
    "/health": "Whether the engine lives",
    "/ready": "Whether requests are taken",
    "/metrics": "Metrics in Prometheus's text format",
}
_ERRORS = {
    "400": "A field is at fault",
    "401": "No valid key",
    "404": "Another model",
    "413": "Too large",
    "415": "Not JSON",
    "429": "Too many wait; Retry-After says when to come back",
    "503": "Shutting down",
    "504": "Not done in time",
}


def openapi_document() -> dict[str, Any]:
    """Return the description as JSON types."""
    _, schemas = models_json_schema(
        [(schema, "validation") for _, schema in _POSTS.values()], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {
        path: {"get": {"summary": summary, "responses": {"200": {"description": "OK"}}}}
        for path, summary in _GETS.items()
    }
    for path, (summary, schema) in _POSTS.items():
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema.__name__}"}}}
        answers = {"200": "OK"} | _ERRORS
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": content},
                "responses": {status: {"description": meaning} for status, meaning in answers.items()},
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Forerun", "version": forerun.__version__},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }
