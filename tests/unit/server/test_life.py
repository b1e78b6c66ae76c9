"""Clients that go, crowds, ends: what is cancelled is free at once, what runs may finish, what fails is said."""

import json
import socket
import threading
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from simulated.serving import SimulatedResources, running_server

from forerun.core.errors import DeviceMemoryError

LONG = {"prompt": "on and on", "max_tokens": 200, "temperature": 0}


def post(url, **fields):
    return httpx.post(url + "/v1/completions", json=LONG | fields, timeout=60, verify=False)


def in_thread(action):
    """Run something beside the test; the returned function waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(action()))
    thread.start()

    def result():
        thread.join(60)
        return results[0]

    return result


def connection_that_asks(server, **fields):
    """Return a connection over which a completion was asked for."""
    address = urlsplit(server.url)
    body = json.dumps(LONG | fields).encode()
    connection = socket.create_connection((address.hostname, address.port))
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_is_cancelled(stream):
    with running_server(SimulatedResources(num_sequences=1)) as server:
        target = server.resources.target
        target.may_run.clear()
        with connection_that_asks(server, stream=stream):
            server.until(lambda engine: engine.num_outstanding == 1)
        server.until(lambda engine: engine.num_outstanding == 0)
        target.may_run.set()
        server.idle()
        # The pass that was under way, and no more.
        assert server.app.engine.thread.counters.num_tokens <= 4
        assert post(server.url, max_tokens=3).json()["choices"][0]["finish_reason"] == "length"


def test_clients_go_while_they_wait_and_while_the_server_drains():
    with running_server(SimulatedResources(num_sequences=1)) as server:
        server.resources.target.may_run.clear()
        with connection_that_asks(server):
            server.until(lambda engine: engine.num_outstanding == 1)
            with connection_that_asks(server, prompt="never read"):
                server.until(lambda engine: engine.num_outstanding == 2)
            server.until(lambda engine: engine.num_outstanding == 1)
            server.begin_drain()
            server.until(lambda engine: engine.is_draining)
        server.until(lambda engine: engine.num_outstanding == 0)
        server.resources.target.may_run.set()
        server.wait()
        assert server.app.engine.thread.counters.num_prefilled == len(LONG["prompt"])


def test_a_crowd_waits_and_beyond_it_gets_429():
    with running_server(SimulatedResources(num_sequences=1), max_waiting=1) as server:
        target = server.resources.target
        target.may_run.clear()
        first, second = (in_thread(lambda: post(server.url, max_tokens=5)) for _ in range(2))
        server.until(lambda engine: engine.num_outstanding == 2)
        third = post(server.url)
        assert (third.status_code, third.headers["retry-after"]) == (429, "1")
        assert third.json()["error"]["type"] == "rate_limit_error"
        assert post(server.url, n=3).status_code == 429
        target.may_run.set()
        assert [first().status_code, second().status_code] == [200, 200]
        assert post(server.url, max_tokens=2).status_code == 200


def test_draining_finishes_what_runs_and_refuses_what_is_new():
    with running_server(SimulatedResources(num_sequences=2)) as server:
        target = server.resources.target
        target.may_run.clear()
        running = in_thread(lambda: post(server.url, max_tokens=30))
        server.until(lambda engine: engine.num_outstanding == 1)
        with httpx.Client(base_url=server.url, timeout=60, verify=False) as client:
            assert client.get("/ready").status_code == 200
            server.begin_drain()
            server.until(lambda engine: engine.is_draining)
            refused = client.post("/v1/completions", json=LONG)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
            assert client.get("/ready").status_code == 503
            assert client.get("/health").status_code == 200
        target.may_run.set()
        answer = running()
        assert len(answer.json()["choices"][0]["text"]) == 30
        server.wait()


def test_a_drain_has_an_end():
    with running_server(drain_timeout_s=0.05) as server:
        server.resources.target.may_run.clear()
        running = in_thread(lambda: _status_or_error(server.url))
        server.until(lambda engine: engine.num_outstanding == 1)
        server.begin_drain()
        assert running() in {200, 499, 500, 503, "closed"}
        server.resources.target.may_run.set()
        server.wait()


def _status_or_error(url):
    try:
        return post(url).status_code
    except httpx.TransportError:
        return "closed"


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_takes_too_long_is_ended(stream):
    with running_server(request_timeout_s=0.05) as server:
        server.resources.target.may_run.clear()
        answer = post(server.url, stream=stream)
        server.resources.target.may_run.set()
        if stream:
            last = [line for line in answer.text.splitlines() if line][-1]
            error = json.loads(last.removeprefix("data: "))["error"]
        else:
            assert answer.status_code == 504
            error = answer.json()["error"]
        assert error["code"] == "timeout"
        server.idle()
        assert post(server.url, max_tokens=2, stream=False).status_code in {200, 504}


@pytest.mark.parametrize("error", [FloatingPointError, DeviceMemoryError])
def test_a_pass_that_fails_ends_its_requests_and_nothing_of_it_is_reused(error):
    """The prompt has more than a block, whose keys and values the pass that failed has never written."""
    body = {"prompt": "a long beginning, asked for again, of " + "words and " * 5, "max_tokens": 4}
    with running_server() as server:
        server.resources.target.fails_with = error
        failed = post(server.url, **body)
        assert failed.status_code == 500
        assert failed.json()["error"]["type"] == "server_error"
        again, apart = post(server.url, **body), post(server.url, **body, cache_salt="apart")
        assert again.json()["choices"] == apart.json()["choices"]


def test_a_request_whose_logits_are_no_numbers_fails_alone():
    poison = "\x01 in a prompt"
    with running_server() as server:
        target = server.resources.target
        alone = post(server.url, max_tokens=40).json()["choices"]
        law = target.law
        target.law = lambda text: law(text) * np.float32(np.nan if 1 in text and len(text) > 24 else 1)
        target.may_run.clear()
        answers = [
            in_thread(lambda prompt=prompt: post(server.url, prompt=prompt, max_tokens=40))
            for prompt in (LONG["prompt"], poison, LONG["prompt"])
        ]
        server.until(lambda engine: engine.num_outstanding == 3)
        target.may_run.set()
        first, broken, last = (answer() for answer in answers)
        assert [first.json()["choices"], last.json()["choices"]] == [alone, alone]
        assert broken.status_code == 500
        assert "finite" in broken.json()["error"]["message"]


def test_what_is_refused_is_not_cut_into_tokens():
    with running_server(SimulatedResources(num_sequences=1), max_waiting=0) as server:
        tokenizer, texts = server.resources.tokenizer, []
        encode = tokenizer.encode
        tokenizer.encode = lambda text, **options: texts.append(text) or encode(text, **options)
        assert post(server.url, prompt=["many"] * 1000).status_code == 400
        server.resources.target.may_run.clear()
        running = in_thread(lambda: post(server.url, max_tokens=5))
        server.until(lambda engine: engine.num_outstanding == 1)
        assert post(server.url, prompt="one too many").status_code == 429
        server.resources.target.may_run.set()
        assert running().status_code == 200
        assert texts == [LONG["prompt"]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_dies_is_said_to_be_dead():
    with running_server() as server:
        server.resources.target.fails_with = ZeroDivisionError
        assert post(server.url).status_code == 503
        assert httpx.get(server.url + "/health", verify=False).status_code == 503
        assert httpx.get(server.url + "/ready", verify=False).status_code == 503
        assert post(server.url).status_code == 503
        # The thread's end left a request where it stood: there is nothing to be checked for order.
        server.app.engine.thread.check_integrity = lambda: None


def test_a_smaller_priority_number_goes_first():
    with running_server(SimulatedResources(num_sequences=1)) as server:
        target = server.resources.target
        target.may_run.clear()
        order = []
        waits = []
        for number, priority in enumerate((5, 5, -1)):

            def ask(number=number, priority=priority):
                answer = post(server.url, prompt=f"p{number}", max_tokens=20, priority=priority)
                order.append(number)
                return answer.json()["choices"][0]["text"]

            waits.append(in_thread(ask))
            server.until(lambda engine, number=number: engine.num_outstanding == number + 1)
        target.may_run.set()
        texts = [wait() for wait in waits]
        assert order[0] == 2
        assert [
            post(server.url, prompt=f"p{number}", max_tokens=20).json()["choices"][0]["text"] for number in range(3)
        ] == texts


def test_the_log_tells_numbers_and_no_text(caplog):
    with caplog.at_level("INFO", logger="forerun.server"), running_server() as server:
        answer = httpx.post(
            server.url + "/v1/completions",
            json={"prompt": "a secret of mine", "max_tokens": 7},
            headers={"x-request-id": "mine-1"},
            timeout=60,
            verify=False,
        )
        assert answer.headers["x-request-id"] == "mine-1"
        assert httpx.get(server.url + "/health", headers={"x-request-id": "no\tid"}).headers["x-request-id"] != "no\tid"
        server.idle()
    lines = [record.fields for record in caplog.records if record.getMessage() == "request"]
    line = next(fields for fields in lines if fields["request_id"] == "mine-1")
    assert (line["path"], line["status"], line["prompt_tokens"], line["completion_tokens"]) == (
        "/v1/completions",
        200,
        16,
        7,
    )
    assert "secret" not in str([record.__dict__ for record in caplog.records])


def test_the_log_tells_texts_if_it_is_asked_to(caplog):
    with caplog.at_level("INFO", logger="forerun.server"), running_server(logs_prompts=True) as server:
        text = post(server.url, max_tokens=5).json()["choices"][0]["text"]
        server.idle()
    (line,) = [record.fields for record in caplog.records if record.getMessage() == "request"]
    assert (line["prompts"], line["outputs"]) == ([LONG["prompt"]], [text])


def test_many_clients_some_of_whom_go():
    """A soak in small: random limits, methods, cancels, errors; whoever stays gets the text of being alone."""
    with running_server(SimulatedResources(num_sequences=3), max_waiting=100) as server:
        lengths = (3, 17, 40)
        alone = {length: post(server.url, max_tokens=length).json()["choices"][0]["text"] for length in lengths}
        wrong = []

        def client(number):
            with httpx.Client(base_url=server.url, timeout=60, verify=False) as http:
                for turn in range(4):
                    length = lengths[(number + turn) % 3]
                    body = LONG | {
                        "max_tokens": length,
                        "method": ("none", "sequential", "ssd", "auto")[(number * turn) % 4],
                    }
                    kind = (number + 2 * turn) % 5
                    if kind == 0:
                        with http.stream(
                            "POST", "/v1/completions", json=body | {"stream": True, "max_tokens": 200}
                        ) as response:
                            next(response.iter_lines())
                    elif kind == 1:
                        if http.post("/v1/completions", content=b"{").status_code not in {400, 415}:
                            wrong.append("a bad request was taken")
                    else:
                        answer = http.post("/v1/completions", json=body)
                        if answer.json()["choices"][0]["text"] != alone[length]:
                            wrong.append((body, answer.text))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
        server.idle()
        state = server.app.engine.thread.state
        assert (state.num_running, state.num_waiting) == (0, 0)
