"""The way to replicas with Ray Serve played by a few lines: what it says becomes what clients are told."""

import asyncio
import subprocess
import sys
from types import SimpleNamespace

import pytest

from forerun.core.errors import ConfigError, EngineOverloadedError, EngineStoppedError, ServingError
from forerun.engine.config import EngineConfig
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.forwarded_request import ForwardedRequest
from forerun.engine.server.ray_replicas import RayReplicas, ray_replicas
from forerun.engine.server.replica_config import ReplicaConfig

REQUEST = ForwardedRequest(method="POST", path="/v1/completions", headers=(), body=b"{}")


class RayError(Exception):
    """As ``ray.exceptions.RayError``."""


class ServeError(Exception):
    """As ``ray.serve.exceptions.RayServeException``."""


class BackPressureError(ServeError):
    """As ``ray.serve.exceptions.BackPressureError``."""


class Answer:
    """As Ray's generator of a streamed answer: cancelling one that has failed fails again."""

    def __init__(self, messages, error=None):
        self.messages, self.error, self.num_cancelled = iter(messages), error, 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        for message in self.messages:
            return message
        if self.error is not None:
            raise self.error
        raise StopAsyncIteration

    def cancel(self):
        self.num_cancelled += 1
        if self.error is not None:
            raise self.error


class Serve:
    """As ``ray.serve``, as far as it is used; it is the handle too."""

    def __init__(self, answer=None, fails_with=None):
        self.given, self.fails_with = answer, fails_with
        self.options_of_deployment, self.options_of_call = {}, {}
        self.exceptions = SimpleNamespace(BackPressureError=BackPressureError, RayServeException=ServeError)
        self.answer = SimpleNamespace(remote=lambda request: self.given)

    def start(self, **options):
        pass

    def deployment(self, **options):
        self.options_of_deployment = options
        return lambda deployed: SimpleNamespace(bind=lambda *given: given)

    def run(self, application, **options):
        if self.fails_with is not None:
            raise self.fails_with
        return self

    def options(self, **options):
        self.options_of_call = options
        return self

    def broadcast(self, method):
        assert method == "metrics"
        return SimpleNamespace(results_async=self.results_async)

    async def results_async(self, *, timeout_s, return_exceptions):
        assert timeout_s > 0
        assert return_exceptions
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


def replicas_on(serve, **options):
    config = ReplicaConfig(**({"replicas": 2} | options))
    ray = SimpleNamespace(serve=serve, exceptions=SimpleNamespace(RayError=RayError))
    return RayReplicas(ray, ServerConfig(max_waiting=7), EngineConfig(max_num_seqs=6), config, num_cores=1)


def ask(answer, *, num_messages=None):
    """Return what comes of an answer, as far as it is read."""
    serve = Serve(answer)

    async def read():
        messages = replicas_on(serve).ask(REQUEST, "key")
        got = []
        try:
            async for message in messages:
                got.append(message)
                if len(got) == num_messages:
                    break
        finally:
            await messages.aclose()
        return got

    got = asyncio.run(read())
    assert serve.options_of_call == {"stream": True, "session_id": "key"}
    return got


def test_messages_are_passed_on_and_a_whole_answer_is_left_alone():
    answer = Answer([{"type": "a"}, {"type": "b"}])
    assert ask(answer) == [{"type": "a"}, {"type": "b"}]
    assert answer.num_cancelled == 0


def test_an_answer_that_nobody_reads_to_its_end_is_cancelled():
    answer = Answer([{"type": "a"}, {"type": "b"}])
    assert ask(answer, num_messages=1) == [{"type": "a"}]
    assert answer.num_cancelled == 1


def test_a_reader_that_is_cancelled_cancels():
    answer = Answer([], asyncio.CancelledError())
    answer.cancel = lambda: setattr(answer, "num_cancelled", 1)
    with pytest.raises(asyncio.CancelledError):
        ask(answer)
    assert answer.num_cancelled == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BackPressureError("full"), EngineOverloadedError),
        (RayError("the actor died"), EngineStoppedError),
        (ServeError("unavailable"), EngineStoppedError),
    ],
)
def test_what_goes_wrong_is_told_as_one_server_would(error, told):
    with pytest.raises(told):
        ask(Answer([{"type": "a"}], error))


def test_metrics_are_those_of_replicas_that_tell_them():
    told = [("r0", "a 1"), RayError("the actor died"), ("r1", "a 2")]
    assert asyncio.run(replicas_on(Serve(told)).metrics()) == {"r0": "a 1", "r1": "a 2"}
    for nothing in (TimeoutError(), ServeError("there is none")):
        assert asyncio.run(replicas_on(Serve(nothing)).metrics()) == {}


def test_replicas_get_what_was_asked_for():
    serve = Serve()
    replicas_on(serve)
    options = serve.options_of_deployment
    assert (options["num_replicas"], options["autoscaling_config"]) == (2, None)
    assert (options["max_ongoing_requests"], options["max_queued_requests"]) == (6, 7)
    replicas_on(serve, max_replicas=5)
    scaling = serve.options_of_deployment["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 5)
    assert serve.options_of_deployment["num_replicas"] is None


def test_the_front_loads_no_model_code():
    """It needs neither their memory nor the seconds that they take to load."""
    look = "import sys, forerun.engine.server.front, forerun.engine.server.ray_replicas; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numba", "numpy", "tokenizers"} & {*loaded}


def test_a_replica_that_does_not_start_is_one_line():
    serve = Serve(fails_with=RuntimeError("Deploying failed:\n  Traceback\nModelLoadError: x.gguf: no such file\n"))
    with pytest.raises(
        ServingError, match=r"^a replica did not start \(.*x\.gguf.*\); try the same without --replicas"
    ):
        replicas_on(serve)


def test_nobody_may_wait_is_refused_before_ray_starts(monkeypatch):
    monkeypatch.setattr("forerun.engine.server.ray_replicas.available_cores", lambda: (0, 1))
    with (
        pytest.raises(ConfigError, match="max_waiting=0 with replicas"),
        ray_replicas(ServerConfig(max_waiting=0), EngineConfig(), ReplicaConfig(replicas=2)),
    ):
        pass
