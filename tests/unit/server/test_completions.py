"""The API over HTTP: what is asked for comes, by every method, whole and streamed, and nothing else is let in."""

import json

import pytest
from simulated.serving import VOCAB_SIZE

PROMPT = "To whom it may concern"


def ask(client, **fields):
    response = client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 24, "temperature": 0} | fields)
    assert response.status_code == 200, response.text
    return response.json()


def text_of(answer, place=0):
    return answer["choices"][place]["text"]


def events(client, path, body):
    """Return the objects of a stream; it must end as OpenAI's do."""
    with client.stream("POST", path, json=body | {"stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_every_method_gives_the_same_text(client):
    answers = [ask(client, method=method) for method in ("none", "sequential", "ssd", "auto")]
    assert len({text_of(answer) for answer in answers}) == 1
    assert len(text_of(answers[0])) == 24
    assert answers[0]["usage"] == {
        "prompt_tokens": len(PROMPT),
        "completion_tokens": 24,
        "total_tokens": len(PROMPT) + 24,
    }
    assert answers[0]["choices"][0]["finish_reason"] == "length"


def test_a_method_that_is_asked_for_is_used(client):
    origins = {}
    for method in ("none", "sequential", "ssd"):
        tokens = ask(client, method=method, return_tokens=True)["choices"][0]["tokens"]
        origins[method] = {token["origin"] for token in tokens}
        assert "".join(token["text"] for token in tokens) == text_of(ask(client))
        times = [token["time_ms"] for token in tokens]
        assert times == sorted(times)
    assert origins["none"] == {"target"}
    assert "draft" in origins["sequential"]
    assert "cache_hit" in origins["ssd"]


def test_a_stream_says_what_the_whole_says(client):
    body = {
        "prompt": PROMPT,
        "max_tokens": 24,
        "temperature": 0.8,
        "seed": 5,
        "n": 2,
        "logprobs": 2,
        "stop": ["zz", "q"],
    }
    whole = client.post("/v1/completions", json=body).json()
    chunks = events(client, "/v1/completions", body | {"stream_options": {"include_usage": True}})
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-1]["choices"] == []
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert {chunk["system_fingerprint"] for chunk in chunks} == {whole["system_fingerprint"]}
    for place in range(2):
        parts = [chunk["choices"][0] for chunk in chunks[:-1] if chunk["choices"][0]["index"] == place]
        assert "".join(part["text"] for part in parts) == text_of(whole, place)
        assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1]["finish_reason"] == whole["choices"][place]["finish_reason"]
        for key in ("tokens", "token_logprobs", "text_offset"):
            joined = [value for part in parts for value in part["logprobs"][key]]
            assert joined == whole["choices"][place]["logprobs"][key]
    assert text_of(whole, 0) != text_of(whole, 1)


def test_a_seed_gives_the_same_text_whatever_runs_beside(client):
    first = ask(client, temperature=1.0, seed=3)
    many = ask(client, temperature=1.0, seed=3, n=3, method="sequential")
    assert text_of(many, 0) == text_of(first)
    assert len({text_of(many, place) for place in range(3)}) == 3
    assert text_of(ask(client, temperature=1.0)) != text_of(ask(client, temperature=1.0))


def test_prompts_in_every_form(client):
    ids = [ord(letter) for letter in PROMPT]
    expected = text_of(ask(client))
    assert text_of(ask(client, prompt=ids)) == expected
    for prompts in ([PROMPT, "Another"], [ids, [1, 2, 3]]):
        answer = ask(client, prompt=prompts)
        assert text_of(answer) == expected
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]


def test_a_chat(client):
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 12,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
    }
    whole = client.post("/v1/chat/completions", json=body).json()
    (choice,) = whole["choices"]
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"]) == 12
    assert "".join(some["token"] for some in choice["logprobs"]["content"]) == choice["message"]["content"]
    assert all(len(some["top_logprobs"]) == 3 for some in choice["logprobs"]["content"])
    assert all(some["logprob"] <= 0 for some in choice["logprobs"]["content"])
    chunks = events(client, "/v1/chat/completions", body)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == choice["message"]["content"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


def test_parts_of_messages_and_the_developer_role(client):
    def answer(messages):
        body = {"messages": messages, "temperature": 0, "max_completion_tokens": 8}
        return client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]

    plain = answer([{"role": "system", "content": "be"}, {"role": "user", "content": "two words"}])
    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "words"}]
    assert plain == answer([{"role": "developer", "content": "be"}, {"role": "user", "content": parts}])


def test_variables_of_the_chat_template(client):
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 8}

    def ask_with(**variables):
        return client.post("/v1/chat/completions", json=body | {"chat_template_kwargs": variables})

    assert ask_with(tone="dry").json()["usage"]["prompt_tokens"] == len("user: hello\ntone=dry")
    for variables, param in (({"tune": 1}, "chat_template_kwargs.tune"), ({"tone": []}, "chat_template_kwargs.tone")):
        answer = ask_with(**variables)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_tokens_there_and_back(client):
    tokens = client.post("/tokenize", json={"prompt": "abc"}).json()
    assert (tokens["tokens"], tokens["count"]) == ([97, 98, 99], 3)
    assert client.post("/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": "abc"}
    assert client.post("/detokenize", json={"tokens": [VOCAB_SIZE]}).status_code == 400


def test_a_cached_prefix_changes_nothing(client, server):
    counters = server.app.engine.thread.counters
    prompt = "A long beginning that many prompts share, and more of it, and more. "
    first = ask(client, prompt=prompt + "x")
    before = counters.num_prefilled
    assert ask(client, prompt=prompt + "x")["choices"] == first["choices"]
    assert counters.num_prefilled - before < 16
    ask(client, prompt=prompt + "y")
    assert counters.num_prefilled - before < 32
    assert ask(client, prompt=prompt + "x", cache_salt="mine")["choices"] == first["choices"]
    assert counters.num_prefilled - before > len(prompt)


def test_what_the_server_says_of_itself(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert set(model["methods"]) == {"none", "sequential", "ssd", "auto"}
    assert client.get(f"/v1/models/{model['id']}").json() == model
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    for path in ("/", "/web/page.js", "/web/style.css"):
        headers = client.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-cache", "the page of another release must not be mixed with this one's"


def test_the_description_has_every_route_and_resolves(client):
    document = client.get("/openapi.json").json()
    names = {ref.rpartition("/")[2] for ref in _refs(document)}
    assert names <= document["components"]["schemas"].keys()
    for path, item in document["paths"].items():
        (method,) = item
        assert client.request(method, path).status_code in {200, 415}


def _refs(content):
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "$ref":
                yield value
            yield from _refs(value)
    elif isinstance(content, list):
        for value in content:
            yield from _refs(value)


def test_metrics_count_what_happened(client):
    def value(name):
        lines = client.get("/metrics").text.splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if line.startswith(name) and line[len(name)] in " {"
        )

    names = [
        "forerun_generated_tokens_total", "forerun_prompt_tokens_total", "forerun_time_to_first_token_seconds_count",
        "forerun_inter_token_latency_seconds_count", "forerun_outcome_look_ups_total",
        "forerun_draft_tokens_proposed_total",
    ]  # fmt: skip
    before = [value(name) for name in names]
    ask(client, prompt="count me", method="ssd", n=2)
    tokens, prompt_tokens, firsts, laters, look_ups, proposed = (
        value(name) - old for name, old in zip(names, before, strict=True)
    )
    assert (tokens, prompt_tokens, firsts, laters) == (48, 16, 2, 46)
    assert look_ups > 0
    assert proposed == pytest.approx(
        value("forerun_draft_tokens_accepted_total") + value("forerun_draft_tokens_wasted_total") - before[5]
    )
    assert value("forerun_requests_running") == 0
    text = client.get("/metrics").text
    assert 'path="/v1/completions",status="200"' in text
