"""The official client: whole and streamed answers, lists, its errors."""

import pytest

openai = pytest.importorskip("openai")


@pytest.fixture
def api(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
    server.idle()


@pytest.fixture
def model(api):
    (only,) = api.models.list().data
    return only.id


MESSAGES = [{"role": "user", "content": "hello there"}]


def test_chat(api, model):
    answer = api.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=12, temperature=0, n=2, logprobs=True, top_logprobs=2
    )
    assert [len(choice.message.content) for choice in answer.choices] == [12, 12]
    assert answer.usage.completion_tokens == 24
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def test_a_stream_of_a_chat_and_what_is_beyond_openai(api, model):
    whole = api.chat.completions.create(model=model, messages=MESSAGES, max_tokens=16, seed=4)
    stream = api.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=16,
        seed=4,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"method": "sequential", "top_k": 0, "return_tokens": True},
    )
    *chunks, last = list(stream)
    text = "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert last.usage == whole.usage
    origins = {token["origin"] for chunk in chunks for token in chunk.choices[0].model_extra["tokens"]}
    assert origins <= {"target", "draft"}


def test_completions(api, model):
    answer = api.completions.create(
        model=model, prompt=["one", "two"], max_tokens=6, temperature=0, logprobs=1, stop=["~~"]
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    parts = list(api.completions.create(model=model, prompt="one", max_tokens=6, temperature=0, stream=True))
    assert "".join(part.choices[0].text for part in parts) == answer.choices[0].text


def test_a_stream_that_is_left(api, model, server):
    with api.chat.completions.create(model=model, messages=MESSAGES, max_tokens=200, stream=True) as stream:
        next(iter(stream))
    server.idle()
    assert server.app.engine.num_outstanding == 0


def test_errors(api, model):
    with pytest.raises(openai.BadRequestError, match="store") as caught:
        api.chat.completions.create(model=model, messages=MESSAGES, store=True)
    assert caught.value.param == "store"
    with pytest.raises(openai.NotFoundError):
        api.chat.completions.create(model="other", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as caught:
        api.completions.create(model=model, prompt="x", max_tokens=10_000)
    assert caught.value.code == "context_length_exceeded"
