"""One server for the tests that leave it as it was. Clients load no certificates, which takes longer than a test."""

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

import httpx
from simulated.serving import running_server


@pytest.fixture(scope="module")
def server():
    with running_server() as running:
        yield running


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=60, verify=False) as client:
        yield client
    server.idle()
