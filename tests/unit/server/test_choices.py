"""``n``, ``best_of`` and ``echo``: which completions come back, and with what before them."""

import json

from simulated.serving import EOS

BODY = {"prompt": "Dear reader", "max_tokens": 12, "temperature": 1.0, "seed": 4}


def ask(client, **fields):
    response = client.post("/v1/completions", json=BODY | fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_best_come_back_best_first(client):
    drawn = ask(client, n=5, logprobs=0, prompt=["Dear reader", "My dear"])["choices"]
    expected = []
    for group in (drawn[:5], drawn[5:]):
        means = {choice["text"]: sum(choice["logprobs"]["token_logprobs"]) / 12 for choice in group}
        expected += sorted(means, key=means.get, reverse=True)[:2]
    answer = ask(client, n=2, best_of=5, prompt=["Dear reader", "My dear"])
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert all(choice["logprobs"] is None for choice in answer["choices"]), "nobody asked for them"
    assert answer["usage"]["completion_tokens"] == 10 * 12, "what was drawn was paid for"


def test_equal_prompts_have_texts_of_their_own_unless_a_seed_is_given(client):
    """Of 24 tokens each: that they were the same by chance has a probability below 1e-9."""
    fields = {"prompt": ["Dear reader"] * 2, "max_tokens": 24}
    one, other = (choice["text"] for choice in ask(client, **fields, seed=None)["choices"])
    assert one != other
    one, other = (choice["text"] for choice in ask(client, **fields)["choices"])
    assert one == other


def test_best_of_as_many_as_are_returned_is_n(client):
    assert ask(client, n=2, best_of=2)["choices"] == ask(client, n=2)["choices"]


def test_an_echo_is_the_prompt_with_its_special_tokens(client):
    assert ask(client, prompt=[EOS, 72, 105], echo=True)["choices"][0]["text"].startswith("\0Hi")


def test_an_echo_stands_before_each_choice_whole_and_streamed(client):
    plain, echoed = ask(client, n=2), ask(client, n=2, echo=True)
    assert [choice["text"] for choice in echoed["choices"]] == [
        BODY["prompt"] + choice["text"] for choice in plain["choices"]
    ]
    assert echoed["usage"] == plain["usage"]
    with client.stream("POST", "/v1/completions", json=BODY | {"echo": True, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line and line != "data: [DONE]"]
    texts = [json.loads(line[6:])["choices"][0]["text"] for line in lines]
    assert "".join(texts) == echoed["choices"][0]["text"]
    assert texts[0].startswith(BODY["prompt"])
