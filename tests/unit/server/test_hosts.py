"""Under which names a server is asked: a page whose name was made to point at this machine must not be let in."""

import asyncio

import httpx
import pytest
from simulated.serving import running_server

from forerun.engine.server.config import ServerConfig
from forerun.engine.server.host_check import HostCheck, host_name


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8000", 200),
        ("LocalHost.", 200),
        ("forerun.localhost:80", 200),
        ("[::1]:8000", 200),
        ("page.example", 403),
        ("page.example:8000", 403),
        ("127.0.0.1.page.example", 403),
        ("localhost.page.example", 403),
        ("[", 403),
    ],
)
def test_a_server_of_this_machine_goes_by_addresses_and_localhost(client, host, status):
    for path in ("/", "/v1/models"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == status
        if status == 403:
            assert answer.json()["error"]["code"] == "unknown_host"
            assert "--allowed-hosts" in answer.json()["error"]["message"]


def test_names_can_be_given_to_it():
    with running_server(allowed_hosts=("Models.example",)) as running:
        for host, status in (("models.example:443", 200), ("localhost", 200), ("other.example", 403)):
            assert httpx.get(running.url + "/health", headers={"host": host}, verify=False).status_code == status


@pytest.mark.parametrize(
    ("options", "is_let_in"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "192.168.1.5"}, True),
        ({"unix_socket": "/run/x.sock"}, True),
        ({"host": "::1"}, False),
        ({"host": "localhost"}, False),
        ({"host": "0.0.0.0", "allowed_hosts": ("models.example",)}, False),
    ],
)
def test_a_server_of_more_machines_goes_by_any_name_unless_some_are_given(options, is_let_in):
    assert (asyncio.run(_first_word(ServerConfig(**options))) == "let in") == is_let_in


async def _first_word(config):
    told = []

    async def app(scope, receive, send):
        told.append("let in")

    async def send(message):
        told.append(message.get("status"))

    scope = {"type": "http", "headers": [(b"host", b"page.example")], "path": "/", "method": "GET"}
    await HostCheck(app, config)(scope, None, send)
    return told[0]


def test_a_host_without_a_port_with_one_and_an_address():
    names = {"a.b": "a.b", "a.b:1": "a.b", "[::1]:1": "::1", "[::1]": "::1", "": "", " A.b. ": "a.b"}
    assert {header: host_name(header) for header in names} == names
