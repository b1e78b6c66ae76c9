"""What /metrics says: every number that the docs name, in a server at work and after it."""

import re
import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from simulated.serving import SimulatedResources, running_server

BODY = {"prompt": "count me", "max_tokens": 40, "temperature": 0}


def samples(url):
    """Return values by name and labels."""
    text = httpx.get(url + "/metrics", verify=False).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def by_position(found, name):
    """Return the values at places 1, 2, ..."""
    places = sorted(int(key[1]) for key in found if key[0] == name)
    assert places == list(range(1, len(places) + 1))
    return [found[name, str(place)] for place in places]


def test_the_docs_name_every_metric_and_no_other():
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    table = page.split("### Metrics")[1].split("###")[0]
    named = {f"forerun_{name}" for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)(?:\{[\w,]+\})?`", table)}
    with running_server() as server:
        httpx.post(server.url + "/v1/completions", json=BODY | {"method": "ssd"}, timeout=60, verify=False)
        names = {key[0] for key in samples(server.url)}
    shown = {re.sub("_(count|sum|bucket)$", "", name) for name in names if not name.endswith("_created")}
    assert shown == named


def test_gauges_tell_who_runs_who_waits_and_by_which_method():
    with running_server(SimulatedResources(num_sequences=2, capacity=64)) as server:
        target = server.resources.target
        with httpx.Client(base_url=server.url, timeout=60, verify=False) as client:
            for body in (BODY, BODY | {"method": "sequential"}, BODY | {"method": "none"}):
                may_step = threading.Event()
                server.app.engine.thread.call(lambda may_step=may_step: may_step.wait(60))
                target.hold_after(1)
                with client.stream("POST", "/v1/completions", json=body | {"n": 3, "stream": True}) as response:
                    may_step.set()
                    lines = response.iter_lines()  # kept: the connection is closed with it
                    next(lines)
                    found = samples(server.url)
                    target.may_run.set()
                    method = body.get("method", "ssd")
                    assert found["forerun_requests_running",] == 2
                    assert found["forerun_requests_waiting",] == 1
                    assert found["forerun_requests_by_method", method] == 3
                    assert sum(value for key, value in found.items() if key[0] == "forerun_requests_by_method") == 3
                    assert found["forerun_kv_cache_usage_ratio",] == 2 / 8, "each holds a block of eight"
                server.idle()
        found = samples(server.url)
        for name in ("requests_running", "requests_waiting", "kv_cache_usage_ratio"):
            assert found[f"forerun_{name}",] == 0
        assert found["forerun_engine_up",] == 1


@pytest.mark.parametrize("method", ["none", "sequential", "ssd"])
def test_counters_of_a_method_fit_each_other(method):
    with running_server() as server:
        answer = httpx.post(
            server.url + "/v1/completions",
            json=BODY | {"method": method, "n": 2, "return_tokens": True, "return_outcomes": True},
            timeout=60,
            verify=False,
        ).json()
        server.idle()
        found = samples(server.url)

    def total(name):
        return found[f"forerun_{name}_total",]

    tokens = [token for choice in answer["choices"] for token in choice["tokens"]]
    assert total("generated_tokens") == len(tokens) == 80
    assert found["forerun_time_to_first_token_seconds_count",] == 2
    assert found["forerun_inter_token_latency_seconds_count",] == 78
    assert found["forerun_inter_token_latency_seconds_sum",] > 0
    proposed, accepted = total("draft_tokens_proposed"), total("draft_tokens_accepted")
    assert accepted == sum(token["origin"] != "target" for token in tokens)
    assert total("draft_tokens_wasted") == proposed - accepted
    at_place = by_position(found, "forerun_draft_position_proposed_total")
    accepted_at = by_position(found, "forerun_draft_position_accepted_total")
    assert (sum(at_place), sum(accepted_at)) == (proposed, accepted)
    assert at_place == sorted(at_place, reverse=True)
    assert all(some <= all_of_them for some, all_of_them in zip(accepted_at, at_place, strict=True))
    look_ups = [some for choice in answer["choices"] for some in choice["outcomes"]]
    num_true = sum(some["came_true"] is not None for some in look_ups)
    assert 0 <= total("outcome_hits") <= num_true, "the last token needs no draft"
    assert total("outcome_hits") <= total("outcome_look_ups") <= len(look_ups)
    prepared, unused = total("draft_tokens_prepared"), total("draft_tokens_unused")
    continuations = [outcome["continuation"] for some in look_ups for outcome in some["predicted"]]
    assert prepared == sum(map(len, continuations))
    if method == "none":
        assert (proposed, prepared, unused) == (0, 0, 0)
    if method == "sequential":
        assert proposed > 0
        assert (prepared, unused) == (0, 0)
    if method == "ssd":
        assert total("outcome_hits") > 0
        assert 0 < unused < prepared
        assert prepared - unused <= proposed, "what was used was verified"
