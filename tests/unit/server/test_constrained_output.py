"""Constrained output over HTTP, by the official client: formats, errors that name the field, dead ends."""

import json
import re
from typing import Literal

import httpx
import pytest
from simulated.serving import SimulatedResources, running_server

pytest.importorskip("llguidance")
openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

MESSAGES = [{"role": "user", "content": "hello there"}]
BODY = {"messages": MESSAGES, "max_tokens": 200, "temperature": 1, "seed": 3}
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["calm", "wild"]}, "waves": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["mood", "waves"],
    "additionalProperties": False,
}

TOO_MANY = {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(4)]} for i in range(12)]}


class Sea(pydantic.BaseModel):
    mood: Literal["calm", "wild"]
    waves: list[bool]


@pytest.fixture(scope="module")
def server():
    with running_server(SimulatedResources(capacity=1024)) as running:
        yield running


@pytest.fixture(scope="module")
def api(server):
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60, http_client=httpx.Client(verify=False)
    ) as client:
        yield client


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=60, verify=False) as client:
        yield client
    server.idle()


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "sea", "schema": schema, "strict": True}}


def test_a_pydantic_model(api):
    model = api.models.list().data[0].id
    answer = api.chat.completions.parse(model=model, messages=MESSAGES, max_tokens=300, seed=1, response_format=Sea)
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Sea)


def test_a_stream_is_what_the_whole_is_and_every_method_gives_the_same(client):
    body = BODY | {"response_format": schema_format(SCHEMA)}
    texts = set()
    for method in ("none", "sequential", "ssd"):
        whole = client.post("/v1/chat/completions", json=body | {"method": method}).json()["choices"][0]
        assert whole["finish_reason"] == "stop"
        texts.add(whole["message"]["content"])
    with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as stream:
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
    texts.add("".join(event["choices"][0]["delta"].get("content") or "" for event in events))
    (text,) = texts
    sea = json.loads(text)
    assert sea["mood"] in ("calm", "wild")
    assert 1 <= sea["waves"] <= 99


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"response_format": {"type": "regex", "pattern": "[ab]{3}(x|yz)"}}, "[ab]{3}(x|yz)"),
        ({"structured_outputs": {"regex": "[0-9]{2}-[0-9]"}}, "[0-9]{2}-[0-9]"),
        ({"structured_outputs": {"choice": ["yes", "no", "may be/so"]}}, "yes|no|may be/so"),
        ({"structured_outputs": {"json": {"enum": [1, 2]}}}, "1|2"),
        ({"response_format": {"type": "text"}}, "(?s).+"),
    ],
)
def test_formats_of_both_kinds_of_request(client, fields, pattern):
    for path, prompt in (("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": MESSAGES})):
        answer = client.post(path, json={"max_tokens": 40, "seed": 2} | prompt | fields)
        (choice,) = answer.json()["choices"]
        assert re.fullmatch(pattern, choice["text"] if "text" in choice else choice["message"]["content"])


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        ({"response_format": schema_format({"type": "objct"})}, "response_format", "objct"),
        ({"response_format": schema_format({"not": {}})}, "response_format", "not"),
        ({"response_format": schema_format({"type": "array", "uniqueItems": True})}, "response_format", "uniqueItems"),
        ({"response_format": schema_format({"$ref": "http://127.0.0.1:1/x"})}, "response_format", "http"),
        ({"response_format": schema_format({"multipleOf": 999983})}, "response_format", "multipleOf"),
        ({"response_format": schema_format({"x-guidance": {"lenient": True}})}, "response_format", "x-guidance"),
        ({"response_format": {"type": "regex", "pattern": "(a"}}, "response_format", "unclosed"),
        ({"response_format": {"type": "regex", "pattern": "(?=a)b"}}, "response_format", "look-around"),
        ({"response_format": {"type": "regex", "pattern": r"[^\s\S]"}}, "response_format", "no first token"),
        ({"response_format": {"type": "regex", "pattern": "é"}}, "response_format", "no first token"),
        ({"response_format": schema_format(TOO_MANY)}, "response_format", "too large"),
        ({"structured_outputs": {"regex": "a" * 70_000}}, "structured_outputs.regex", "65536"),
        ({"structured_outputs": {"json": {"enum": ["x" * 70_000]}}}, "structured_outputs", "65536"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "one of"),
        ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs.grammar", "not supported"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, None, "give one"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, None, "ignore_eos"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(client, fields, param, word):
    answer = client.post("/v1/chat/completions", json=BODY | fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert word in error["message"]
    assert param is None or error["param"] == param


def test_a_dead_end_is_the_error_of_its_request(client):
    body = {"prompt": "x", "max_tokens": 20, "structured_outputs": {"choice": ["yes"]}}
    answer = client.post("/v1/completions", json=body | {"min_tokens": 10})
    assert answer.status_code == 400
    assert "leaves no token after 3 tokens" in answer.json()["error"]["message"]
    with client.stream("POST", "/v1/completions", json=body | {"min_tokens": 10, "stream": True}) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert "leaves no token" in json.loads(lines[-1][6:])["error"]["message"]
    assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == "yes"


def test_what_is_compiled_is_kept(client, server):
    body = {"prompt": "x", "max_tokens": 20, "structured_outputs": {"choice": ["kept"]}}
    compiled = server.resources.grammars._compiled
    client.post("/v1/completions", json=body)
    before = list(compiled.values())[-1]
    client.post("/v1/completions", json=body | {"n": 2})
    assert list(compiled.values())[-1] is before
