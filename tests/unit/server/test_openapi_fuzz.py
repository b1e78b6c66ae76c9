"""The API against its own description: schemathesis sends what fits it and what does not, and looks at the answers."""

import warnings

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    schemathesis = pytest.importorskip("schemathesis")

from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

PATHS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")


@pytest.fixture(scope="module")
def description(server):
    return schemathesis.openapi.from_url(server.url + "/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", PATHS)
def test_answers_are_those_described(description, server, path, mode):
    """Not tested: that what fits is taken. A context has an end, a vocabulary too, and no schema says so."""
    statuses = set()

    @seed(7)
    @settings(
        max_examples=10, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(case=description[path]["POST"].as_strategy(generation_mode=mode))
    def check(case):
        response = case.call_and_validate(excluded_checks=[positive_data_acceptance], timeout=60)
        statuses.add(response.status_code)

    check()
    assert statuses <= {200, 400, 404, 415}
    assert statuses & {400, 415} if mode is GenerationMode.NEGATIVE else statuses
    server.idle()
