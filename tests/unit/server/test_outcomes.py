"""What SSD prepared for each round, for those who ask: it fits the tokens that came, and asking changes none."""

import json
from itertools import pairwise

BODY = {"prompt": "To whom it may concern", "max_tokens": 40, "temperature": 0, "return_tokens": True}


def ask(client, **fields):
    response = client.post("/v1/completions", json=BODY | fields)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def rounds(client, **fields):
    """Return a stream's choices, one for each round."""
    with client.stream("POST", "/v1/completions", json=BODY | fields | {"stream": True}) as response:
        lines = [line for line in response.iter_lines() if line and line != "data: [DONE]"]
    return [json.loads(line[6:])["choices"][0] for line in lines]


def ids(tokens):
    return [token["id"] for token in tokens]


def test_each_look_up_is_of_the_round_before_it(client):
    hits, misses = 0, 0
    streamed = rounds(client, method="ssd", return_outcomes=True)
    assert streamed[0]["outcomes"] == []
    for before, after in pairwise(streamed):
        (look_up,) = after["outcomes"]
        *accepted, token = ids(before["tokens"])
        num_accepted, draft = look_up["num_accepted"], ids(look_up["draft"])
        assert (look_up["token"]["id"], num_accepted, draft[:num_accepted]) == (token, len(accepted), accepted)
        assert draft[num_accepted : num_accepted + 1] != [token], "a token that was drafted is accepted"
        keys = [(some["num_accepted"], some["token"]["id"]) for some in look_up["predicted"]]
        assert len(set(keys)) == len(keys) <= 8, "one branch for an outcome, no more than the budget"
        assert all(0 <= accepted <= len(draft) for accepted, _ in keys)
        new = [token for token in after["tokens"] if token["origin"] != "target"]
        if look_up["came_true"] is None:
            misses += 1
            assert (num_accepted, token) not in keys
            assert all(token["origin"] == "fallback" for token in new)
        else:
            hits += 1
            assert keys[look_up["came_true"]] == (num_accepted, token)
            continuation = ids(look_up["predicted"][look_up["came_true"]]["continuation"])
            assert continuation[: len(new)] == ids(new)
            assert all(token["origin"] == "cache_hit" for token in new)
    assert hits > 0
    assert misses > 0


def test_the_whole_answer_has_what_the_stream_had(client):
    whole = ask(client, method="ssd", return_outcomes=True)
    streamed = rounds(client, method="ssd", return_outcomes=True)
    assert whole["outcomes"] == [some for choice in streamed for some in choice["outcomes"]]
    assert whole["outcomes"][0]["draft"] == [], "the first is of the prompt, which has no draft"
    assert whole["outcomes"][0]["token"]["text"] == whole["text"][0]


def test_who_does_not_ask_gets_none_and_the_same_text(client):
    plain = ask(client, method="ssd")
    assert "outcomes" not in plain
    assert ask(client, method="ssd", return_outcomes=True)["text"] == plain["text"]
    for method in ("none", "sequential"):
        assert ask(client, method=method, return_outcomes=True)["outcomes"] == []
