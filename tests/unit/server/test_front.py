"""A front before replicas, all in this process: clients see one server, whichever replica answers."""

import json
import socket
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from simulated.serving import RunningServer, SimulatedResources, running_server

from forerun.core.errors import ConfigError, EngineOverloadedError, EngineStoppedError
from forerun.engine.server.config import ServerConfig
from forerun.engine.server.front import Front
from forerun.engine.server.merged_metrics import merged_metrics
from forerun.engine.server.prompt_key import prompt_key
from forerun.engine.server.ray_replica import core_share
from forerun.engine.server.replica import Replica
from forerun.engine.server.replica_config import ReplicaConfig

BODY = {"prompt": "Dear reader", "max_tokens": 16, "temperature": 0}


class Replicas:
    """Two replicas; a key chooses, as the deployment's router does."""

    def __init__(self, config: ServerConfig) -> None:
        self.resources = [SimulatedResources(num_sequences=1) for _ in range(2)]
        self.replicas = [Replica(some, config, name=f"r{place}") for place, some in enumerate(self.resources)]
        self.has_started = False
        self.fails_with: Exception | None = None
        self.num_alive = 2

    def num_running(self):
        return self.num_alive

    async def metrics(self):
        return dict(replica.metrics() for replica in self.replicas)

    async def ask(self, request, key):
        if not self.has_started:
            self.has_started = True
            for replica in self.replicas:
                replica.start()
        if self.fails_with is not None:
            raise self.fails_with
        messages = self.replicas[int(key or "0", 16) % 2].answer(request)
        try:
            async for message in messages:
                yield message
        finally:
            await messages.aclose()


@contextmanager
def running_front(**options):
    config = ServerConfig(port=0, **options)
    replicas = Replicas(config)
    server = RunningServer(Front(replicas, config), config)
    try:
        yield server, replicas
    finally:
        for some in replicas.resources:
            some.target.may_run.set()
        server.begin_drain()
        server.wait()
        for replica in replicas.replicas:
            thread = replica._server.engine.thread
            if replicas.has_started:
                thread.close()
                thread.check_integrity()


@pytest.fixture(scope="module")
def front():
    with running_front() as running:
        yield running


@pytest.fixture
def http(front):
    with httpx.Client(base_url=front[0].url, timeout=60, verify=False) as client:
        yield client


def test_clients_see_one_server(http):
    with running_server() as single:
        expected = httpx.post(single.url + "/v1/completions", json=BODY, verify=False).json()["choices"]
    assert http.post("/v1/completions", json=BODY).json()["choices"] == expected
    assert http.post("/v1/completions", json=BODY | {"prompt": "Dear readers"}).status_code == 200
    with http.stream("POST", "/v1/completions", json=BODY | {"stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    texts = [json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1]]
    assert len(texts) > 3
    assert "".join(texts) == expected[0]["text"]
    assert http.post("/tokenize", json={"prompt": "ab"}).json()["tokens"] == [97, 98]
    assert http.get("/v1/models").json()["data"][0]["owned_by"] == "forerun"
    assert "<title>Forerun" in http.get("/").text


def test_errors_have_the_shape_of_one_server(front, http):
    replicas = front[1]
    assert http.post("/v1/completions", json=BODY | {"n": 0}).json()["error"]["param"] == "n"
    assert http.post("/v1/completions", content=b"{}").status_code == 415
    assert http.get("/v1/models/other").status_code == 404
    assert http.get("/nowhere").json()["error"]["type"] == "invalid_request_error"
    for error, status in ((EngineOverloadedError("full"), 429), (EngineStoppedError("gone"), 503)):
        replicas.fails_with = error
        answer = http.post("/v1/completions", json=BODY)
        replicas.fails_with = None
        assert (answer.status_code, answer.headers["retry-after"]) == (status, "1")
        assert str(error) in answer.json()["error"]["message"]
    with running_front(api_keys=("k",)) as (server, _):
        assert httpx.get(server.url + "/v1/models", verify=False).status_code == 401


def test_health_is_that_of_the_replicas(front, http):
    assert http.get("/health").json() == {"status": "ok", "replicas": 2}
    assert http.get("/ready").status_code == 200
    front[1].num_alive = 0
    assert [http.get(path).status_code for path in ("/health", "/ready")] == [503, 503]
    front[1].num_alive = 2


def test_metrics_tell_replicas_apart(http):
    for number in range(8):
        http.post("/v1/completions", json=BODY | {"prompt": f"number {number}"})
    families = {family.name: family for family in text_string_to_metric_families(http.get("/metrics").text)}
    generated = families["forerun_generated_tokens"].samples
    assert {sample.labels["replica"] for sample in generated} == {"r0", "r1"}
    assert all(sample.value >= 16 for sample in generated)
    answers = families["forerun_http_responses"].samples
    assert {sample.labels["replica"] for sample in answers} == {"front"}


def test_the_log_tells_who_answered_and_how_many_tokens(caplog):
    """Clients leave with the last byte; many of them, for a race between that and the log would be lost at times."""
    num_asked = 40
    with caplog.at_level("INFO", logger="forerun.server"), running_front() as (server, _):
        for number in range(num_asked):
            body = BODY | {"prompt": f"number {number}", "max_tokens": 3, "stream": number % 2 == 1}
            httpx.post(server.url + "/v1/completions", json=body, timeout=60, verify=False)
    lines = [record.fields for record in caplog.records if record.getMessage() == "request"]
    assert len(lines) == num_asked
    assert {line.get("replica") for line in lines} == {"r0", "r1"}
    assert {line.get("completion_tokens") for line in lines} == {3}


def test_a_client_that_goes_is_cancelled_at_its_replica(front):
    server, replicas = front
    for some in replicas.resources:
        some.target.may_run.clear()
    address = urlsplit(server.url)
    body = json.dumps(BODY | {"max_tokens": 200}).encode()
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        server.until(lambda _: any(replica._server.engine.num_outstanding for replica in replicas.replicas))
    server.until(lambda engine: engine.num_outstanding == 0)
    assert not any(replica._server.engine.num_outstanding for replica in replicas.replicas)
    for some in replicas.resources:
        some.target.may_run.set()


def test_draining_finishes_what_runs():
    with running_front() as (server, replicas):
        for some in replicas.resources:
            some.target.may_run.clear()
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(server.url + "/v1/completions", json=BODY, timeout=60))
        )
        asking.start()
        server.until(lambda engine: engine.num_outstanding == 1)
        with httpx.Client(base_url=server.url, timeout=60, verify=False) as client:
            client.get("/ready")
            server.begin_drain()
            server.until(lambda engine: engine.is_draining)
            assert client.post("/v1/completions", json=BODY).json()["error"]["code"] == "unavailable"
        for some in replicas.resources:
            some.target.may_run.set()
        asking.join(60)
        assert len(answers[0].json()["choices"][0]["text"]) == 16
        server.wait()


def test_a_replica_whose_engine_has_failed_says_so():
    replica = Replica(SimulatedResources(), ServerConfig(), name="r")
    with pytest.raises(EngineStoppedError):
        replica.check_health()


def body(**fields):
    return json.dumps(fields).encode()


def test_conversations_keep_their_key_and_others_get_another():
    system, first = {"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}
    later = [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "and?"}]
    key = prompt_key(body(messages=[system, first]))
    assert key
    assert prompt_key(body(messages=[system, first, *later], temperature=0.5)) == key
    assert prompt_key(body(messages=[system, {"role": "user", "content": "hello!"}])) != key
    assert prompt_key(body(messages=[first])) != key
    long = "word " * 400
    assert prompt_key(body(prompt=long + "a")) == prompt_key(body(prompt=long + "b")) != prompt_key(body(prompt="a"))
    assert prompt_key(body(prompt=[1, 2])) == prompt_key(body(prompt=[1, 2])) != ""
    for nothing in (b"", b"{", b"[1]", b"[" * 100_000, b"\xff", body(prompt=""), body(messages=[]), body(n=1)):
        assert prompt_key(nothing) == ""


def test_merged_metrics_have_one_head_for_each_family():
    one = '# HELP a_total A.\n# TYPE a_total counter\na_total 1.0\n# HELP b B.\n# TYPE b gauge\nb{x="1, 2"} 2.0\n'
    assert merged_metrics({"r": one, "s": one}).decode().splitlines() == [
        "# HELP a_total A.", "# TYPE a_total counter", 'a_total{replica="r"} 1.0', 'a_total{replica="s"} 1.0',
        "# HELP b B.", "# TYPE b gauge", 'b{replica="r",x="1, 2"} 2.0', 'b{replica="s",x="1, 2"} 2.0',
    ]  # fmt: skip


def test_cores_are_divided():
    assert [core_share((3, 5, 7, 9), rank=rank, size=2) for rank in range(3)] == [(3, 5), (7, 9), None]
    assert ReplicaConfig(replicas=2).num_cores(5) == 2
    assert ReplicaConfig(replicas=2, cores_per_replica=1).num_cores(2) == 1
    assert ReplicaConfig(replicas=9, ray_address="auto").num_cores(2) == 2
    for options in ({"replicas": 3}, {"replicas": 2, "cores_per_replica": 2}, {"max_replicas": 4}):
        with pytest.raises(ConfigError, match="this machine has 2"):
            ReplicaConfig(**options).num_cores(2)
    for options in ({"replicas": 0}, {"replicas": 3, "max_replicas": 2}, {"cores_per_replica": 0}):
        with pytest.raises(ConfigError, match=r"must be >= "):
            ReplicaConfig(**options)
    assert [ReplicaConfig(**options).needs_ray for options in ({}, {"replicas": 2}, {"ray_address": "auto"})] == [
        False, True, True,
    ]  # fmt: skip
