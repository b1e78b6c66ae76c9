"""The API: completions, chats, tokens, models, and how the server is."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from forerun.core.errors import CompletionFailedError, EngineOverloadedError, EngineStoppedError, RequestError
from forerun.engine.server.answers import Answer
from forerun.engine.server.api_error import ApiError, overloaded, unavailable
from forerun.engine.server.bridge import AsyncEngine, Call
from forerun.engine.server.choice_plan import choice_plan
from forerun.engine.server.fingerprint import fingerprint
from forerun.engine.server.http_io import EventStream, event, read_body, unless_disconnected
from forerun.engine.server.metrics import ServerMetrics
from forerun.engine.server.parameters import (
    check_room,
    compile_constraint,
    num_prompts,
    prompts_of,
    request_error,
    sampling_params,
    tool_names,
)
from forerun.engine.server.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    parse_body,
)

_CLIENT_HAS_GONE = 499
BodyT = TypeVar("BodyT", CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest)


@contextmanager
def _refusals() -> Generator[None]:
    """Turn what the engine refuses into answers."""
    try:
        yield
    except RequestError as error:
        raise request_error(error) from error
    except EngineOverloadedError as error:
        raise overloaded(error) from error
    except EngineStoppedError as error:
        raise unavailable(error) from error


class Routes:
    """Answers requests with one engine.

    Args:
        engine: The engine.
        metrics: For ``/metrics``.
        model: Name of the served model.
        created: When it was loaded, in seconds since 1970.
    """

    def __init__(self, engine: AsyncEngine, metrics: ServerMetrics, *, model: str, created: int) -> None:
        self._engine, self._metrics, self._model, self._created = engine, metrics, model, created
        self._config = engine.config
        self._fingerprint = fingerprint(engine.resources.config)

    async def completions(self, request: Request) -> Response:
        """Continue prompts."""
        return await self._complete(request, await self._body(request, CompletionRequest))

    async def chat_completions(self, request: Request) -> Response:
        """Answer a conversation."""
        return await self._complete(request, await self._body(request, ChatRequest))

    async def tokenize(self, request: Request) -> Response:
        """Cut a text into tokens."""
        body = await self._body(request, TokenizeRequest)
        ids = await asyncio.to_thread(
            self._engine.resources.tokenizer.encode, body.prompt, add_special_tokens=body.add_special_tokens
        )
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": self._engine.resources.max_len})

    async def detokenize(self, request: Request) -> Response:
        """Return the text of tokens."""
        body = await self._body(request, DetokenizeRequest)
        resources = self._engine.resources
        if any(token >= resources.vocab_size for token in body.tokens):
            raise ApiError(400, f"tokens: must be below {resources.vocab_size}, this model's number", param="tokens")
        text = await asyncio.to_thread(resources.tokenizer.decode, body.tokens, skip_special_tokens=False)
        return JSONResponse({"prompt": text})

    async def models(self, request: Request) -> Response:
        """List the one model."""
        return JSONResponse({"object": "list", "data": [self._model_object()]})

    async def model(self, request: Request) -> Response:
        """Describe the one model."""
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model_object())

    async def health(self, request: Request) -> Response:
        """Say whether the engine lives."""
        is_alive = self._engine.is_alive
        return JSONResponse({"status": "ok" if is_alive else "failed"}, status_code=200 if is_alive else 503)

    async def ready(self, request: Request) -> Response:
        """Say whether new requests are taken."""
        is_ready = self._engine.is_ready
        return JSONResponse({"status": "ready" if is_ready else "not ready"}, status_code=200 if is_ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Return the metrics in Prometheus's text format."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _model_object(self) -> dict[str, Any]:
        resources = self._engine.resources
        return {
            "id": self._model,
            "object": "model",
            "created": self._created,
            "owned_by": "forerun",
            "max_model_len": resources.max_len,
            "methods": list(self._engine.thread.ways.methods),
            "default_method": resources.config.method,
            "has_chat_template": resources.tokenizer.chat_template is not None,
        }

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._model:
            raise ApiError(
                404,
                f"model {name[:100]!r} does not exist: this server has {self._model!r}",
                param="model",
                code="model_not_found",
            )

    async def _body(self, request: Request, schema: type[BodyT]) -> BodyT:
        content = await read_body(request, max_bytes=self._config.max_body_bytes, timeout_s=self._config.body_timeout_s)
        body = parse_body(schema, content)
        self._check_model(body.model)
        return body

    async def _complete(self, request: Request, body: CompletionRequest | ChatRequest) -> Response:
        params = sampling_params(body)
        plan = choice_plan(body, num_prompts=num_prompts(body), max_choices=self._config.max_choices)
        with _refusals():  # before text is cut into tokens: a crowd must not cost those who run
            self._engine.check_open(num_prompts(body) * plan.num_drawn)
        prompts = await prompts_of(body, self._engine.resources)
        check_room(prompts, params, self._engine.resources)
        await compile_constraint(body, params, self._engine.resources)
        with _refusals():
            call = self._engine.submit(
                prompts,
                replace(params, logprobs=0) if plan.ranks and params.logprobs is None else params,
                num_choices=plan.num_drawn,
                method=body.method,
                priority=body.priority or 0,
                cache_salt=body.cache_salt or "",
                records_outcomes=bool(body.return_outcomes),
            )
        has_usage = body.stream_options is not None and body.stream_options.include_usage
        answer = Answer(
            "chat" if isinstance(body, ChatRequest) else "text",
            call,
            self._engine.resources,
            model=self._model,
            fingerprint=self._fingerprint,
            reports_logprobs=params.logprobs is not None,
            returns_tokens=bool(body.return_tokens),
            returns_outcomes=bool(body.return_outcomes),
            reports_usage=has_usage,
            plan=plan,
            tool_names=tool_names(body),
        )
        log: dict[str, Any] = request.scope["state"]["log"]
        if body.stream:
            events = self._events(call, answer, log, has_usage=has_usage)
            return EventStream(events, on_end=lambda: self._engine.cancel(call))
        try:
            done = await unless_disconnected(request.receive, self._whole(call, answer, log))
        finally:
            self._engine.cancel(call)
        return Response(status_code=_CLIENT_HAS_GONE) if done is None else JSONResponse(done)

    async def _whole(self, call: Call, answer: Answer, log: dict[str, Any]) -> dict[str, Any]:
        try:
            async for _ in self._chunks(call, answer, log):
                pass
        except TimeoutError as error:
            raise self._late() from error
        except EngineStoppedError as error:
            raise unavailable(error) from error
        except CompletionFailedError as error:
            raise ApiError(500, str(error)) from error
        except RequestError as error:
            raise request_error(error) from error
        return answer.whole()

    async def _events(
        self, call: Call, answer: Answer, log: dict[str, Any], *, has_usage: bool
    ) -> AsyncGenerator[bytes]:
        chunks = self._chunks(call, answer, log)
        try:
            async for content in chunks:
                yield event(content)
            if has_usage:
                yield event(answer.last_chunk())
            yield event("[DONE]")
        except TimeoutError:
            yield event(self._late().content())
        except (EngineStoppedError, CompletionFailedError) as error:
            yield event(ApiError(500, str(error)).content())
        except RequestError as error:
            yield event(request_error(error).content())
        finally:
            await chunks.aclose()

    async def _chunks(self, call: Call, answer: Answer, log: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Yield what there is to stream, in time."""
        deliveries = self._engine.deliveries(call, timeout_s=self._config.request_timeout_s)
        try:
            async for place, delivery in deliveries:
                content = answer.add(place, delivery)
                if content is not None:
                    yield content
        finally:
            await deliveries.aclose()
            usage = answer.usage()
            log |= {"prompt_tokens": usage["prompt_tokens"], "completion_tokens": usage["completion_tokens"]}
            if self._config.logs_prompts:
                decode = self._engine.resources.tokenizer.decode
                log |= {"prompts": [decode(request.prompt_ids) for request in call.requests], "outputs": answer.texts}

    def _late(self) -> ApiError:
        return ApiError(504, f"not done after {self._config.request_timeout_s:g} s: ask for less", code="timeout")
