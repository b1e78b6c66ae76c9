"""What is wrong gets a 4xx in OpenAI's shape that names the fault, and the server goes on."""

import http.client
import json
import random
import socket
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from simulated.serving import running_server

from forerun.engine.server.schemas import ChatRequest, CompletionRequest, DetokenizeRequest

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
COMPLETION = {"prompt": "hi", "max_tokens": 2}
JSON = {"content-type": "application/json"}


def is_error(response, status=400):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 3000
    return error


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"tools": []}, "tools"),
        ("/v1/completions", {"suffix": "x"}, "suffix"),
        ("/v1/chat/completions", {"functions": [{"name": "f"}]}, "functions"),
        ("/v1/chat/completions", {"modalities": ["audio"]}, "modalities"),
        ("/v1/completions", {"top-k": 5}, "top-k"),
        ("/v1/completions", {"str": 5}, "str"),
        ("/v1/completions", {"stream": True, "stream_options": {"Other": 1}}, "stream_options.Other"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x", "weight": 1}]}, "messages.0.weight"),
    ],
)
def test_what_is_not_supported_is_named(client, path, fields, param):
    body = (CHAT if "chat" in path else COMPLETION) | fields
    error = is_error(client.post(path, json=body))
    assert error["param"] == param
    assert param.split(".")[-1] in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": 0.0001}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 17}, "n"),
        ({"best_of": 17}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "stream": True}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 255}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"min_tokens": 9}, "min_tokens"),
        ({"seed": -1}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": 5}, "stop"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [[1, "a"]]}, "prompt"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"logit_bias": {"x": 1}}, None),
        ({"logit_bias": {"500": 1}}, None),
        ({"logit_bias": {"5": 101}}, None),
        ({"stop_token_ids": [500]}, None),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"method": "fast"}, "method"),
        ({"prompt": ""}, None),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, None),
        ({"prompt": [1, 500]}, None),
        ({"prompt": [-1]}, None),
        ({"prompt": "x" * 300}, None),
        ({"prompt": {"a": 1}}, None),
    ],
)
def test_a_wrong_value_is_named(client, fields, param):
    error = is_error(client.post("/v1/completions", json=COMPLETION | fields))
    assert param is None or error["param"] == param


def test_null_is_not_given(client):
    body = COMPLETION | {"tools": None, "temperature": None, "stop": None, "n": None}
    assert client.post("/v1/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe\x00", b'{"prompt": "\xff"}', b"[" * 10_000, b'{"a":' * 10_000,
        b'{"prompt": NaN}', b'{"prompt": "x", "temperature": 1e999}', b'{"prompt": "\\ud800"}', b"\x00" * 100,
    ],
)  # fmt: skip
def test_bytes_that_are_no_request(client, content):
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        is_error(client.post(path, content=content, headers=JSON))


def test_other_types_paths_and_methods(client):
    is_error(
        client.post("/v1/completions", content=json.dumps(COMPLETION), headers={"content-type": "text/plain"}), 415
    )
    is_error(client.post("/v1/completions", data=COMPLETION), 415)
    is_error(client.get("/v1/completions"), 405)
    is_error(client.get("/v1/other"), 404)
    is_error(client.get("/web/../app.py"), 404)
    is_error(client.get("/web/%2e%2e/app.py"), 404)
    is_error(client.post("/v1/completions", json=COMPLETION | {"model": "gpt"}), 404)


@pytest.mark.parametrize(
    ("schema", "content"),
    [
        (CompletionRequest, '{"prompt": [%s]}'),
        (CompletionRequest, '{"prompt": [[%s]]}'),
        (CompletionRequest, '{"prompt": "x", "stop": [%s]}'),
        (CompletionRequest, '{"prompt": "x", "stop_token_ids": [%s]}'),
        (CompletionRequest, '{"prompt": "x", "structured_outputs": {"choice": [%s]}}'),
        (ChatRequest, '{"messages": [%s]}'),
        (ChatRequest, '{"messages": [{"role": "user", "content": [%s]}]}'),
        (ChatRequest, '{"messages": [{"role": "assistant", "tool_calls": [%s]}]}'),
        (ChatRequest, '{"messages": [{"role": "user", "content": "x"}], "tools": [%s]}'),
        (DetokenizeRequest, '{"tokens": [%s]}'),
    ],
)
def test_of_a_list_of_faults_one_is_told(schema, content):
    """Each that is told takes a thousand bytes, of which a body could have a hundred thousand."""
    with pytest.raises(ValidationError) as caught:
        schema.model_validate_json(content % ",".join(["null"] * 1000))
    assert caught.value.error_count() <= 4


def test_faults_without_number_are_counted(client):
    error = is_error(client.post("/v1/completions", json={"prompt": "x"} | {f"x{n}": n for n in range(200)}))
    assert "200 parts" in error["message"]
    error = is_error(
        client.post("/v1/completions", json={"prompt": "x", "logit_bias": {f"x{n}": 1 for n in range(200)}})
    )
    assert "200 parts" in error["message"]


def test_what_others_call_otherwise_is_told(client):
    error = is_error(client.post("/v1/completions", json=COMPLETION | {"guided_json": {}, "repeat_penalty": 1.1}))
    assert "guided_json (use structured_outputs.json), repeat_penalty (use repetition_penalty)" in error["message"]
    assert error["param"] == "guided_json"


def test_too_large_a_body(client, server):
    limit = server.app.engine.config.max_body_bytes
    is_error(client.post("/tokenize", json={"prompt": "x" * limit}), 413)

    # Without a length, in pieces: it is cut off when it has become too large, and the connection is closed.
    def pieces():
        for _ in range(limit // 65536 + 2):
            yield b"x" * 65536

    with suppress(httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
        is_error(client.post("/tokenize", content=pieces(), headers=JSON), 413)
    assert client.get("/health").status_code == 200


def test_headers_without_end(client, server):
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        try:
            for number in range(4000):
                connection.sendall(b"x-%d: %s\r\n" % (number, b"y" * 50))
            answer = connection.recv(100)
        except (ConnectionResetError, BrokenPipeError):
            answer = b""
    assert answer.startswith(b"HTTP/1.1 4") or answer == b""
    assert client.get("/health").status_code == 200


def test_bytes_that_are_no_http(client, server):
    address = urlsplit(server.url)
    noise = random.Random(1)
    for _ in range(20):
        with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
            connection.sendall(noise.randbytes(200) + b"\r\n\r\n")
            assert connection.recv(100)[:10] in {b"", b"HTTP/1.1 4"}
    assert client.get("/health").status_code == 200


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
known = st.sampled_from(
    ["prompt", "messages", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "logprobs", "logit_bias",
     "stream", "stream_options", "top_k", "min_p", "stop_token_ids", "min_tokens", "method", "priority", "model",
     "cache_salt", "user", "tokens"]
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]), body=st.data())
def test_any_json_gets_an_answer_and_never_a_server_error(client, path, body):
    base = {"/v1/completions": COMPLETION, "/v1/chat/completions": CHAT}.get(path, {})
    fields = body.draw(st.dictionaries(known | st.text(max_size=5), json_values, max_size=3))
    response = client.post(path, content=json.dumps(base | fields).encode("utf-8", "surrogatepass"), headers=JSON)
    assert response.status_code in {200, 400, 404}, (path, base | fields, response.text)
    if response.status_code != 200:
        is_error(response, response.status_code)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 60), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_body(client, position, byte, cut):
    content = bytearray(json.dumps(CHAT).encode())
    position %= len(content)
    content[position] = byte
    content = bytes(content[:position]) if cut else bytes(content)
    assert client.post("/v1/chat/completions", content=content, headers=JSON).status_code in {200, 400}


def test_keys():
    with running_server(api_keys=("first-key", "second-key")) as running:
        url = running.url
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "first-key"},
            {"authorization": "Bearer"},
        ):
            for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("POST", "/tokenize")):
                error = is_error(httpx.request(method, url + path, headers=headers, verify=False), 401)
                assert error["code"] == "invalid_api_key"
        for key in ("first-key", "second-key"):
            headers = {"authorization": f"Bearer {key}"}
            assert httpx.get(url + "/v1/models", headers=headers, verify=False).status_code == 200
        raw = {"authorization": "Bearer kl\u00fc".encode("latin-1")}
        assert httpx.get(url + "/v1/models", headers=raw, verify=False).status_code == 401
        assert httpx.get(url + "/health", verify=False).status_code == 200


def test_every_key_is_compared_whichever_fits_and_in_constant_time(monkeypatch):
    compared = []

    def compare(given, known):
        compared.append(known)
        return given == known

    monkeypatch.setattr("forerun.engine.server.key_check.hmac.compare_digest", compare)
    with running_server(api_keys=("one", "two", "three")) as running:
        for key, status in (("one", 200), ("three", 200), ("four", 401)):
            headers = {"authorization": f"Bearer {key}"}
            assert httpx.get(running.url + "/v1/models", headers=headers, verify=False).status_code == status
    assert compared == [b"one", b"two", b"three"] * 3


def test_other_origins_are_let_in_only_if_they_are_named():
    preflight = {"origin": "https://page.example", "access-control-request-method": "POST"}
    allowed = "access-control-allow-origin"
    with running_server() as running:
        assert allowed not in httpx.options(running.url + "/v1/completions", headers=preflight, verify=False).headers
    with running_server(cors_origins=("https://page.example",), api_keys=("k",)) as running:
        answer = httpx.options(running.url + "/v1/completions", headers=preflight, verify=False)
        assert answer.headers[allowed] == "https://page.example"
        refused = httpx.get(running.url + "/v1/models", headers={"origin": "https://page.example"}, verify=False)
        assert refused.headers[allowed] == "https://page.example", "a page can read why it is refused"
        is_error(refused, 401)
        other = preflight | {"origin": "https://other.example"}
        assert allowed not in httpx.options(running.url + "/v1/completions", headers=other, verify=False).headers


def test_a_body_that_does_not_come():
    with running_server(body_timeout_s=0.05) as running:
        address = urlsplit(running.url)
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
        connection.putrequest("POST", "/tokenize")
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", "100")
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 408
        connection.close()
