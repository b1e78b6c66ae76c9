"""Clients that keep the server waiting, on the wire: each is cut off, with an error where one can be heard."""

import http.client
import json
import socket
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from simulated.serving import running_server


@contextmanager
def connection(server, *, receive_bytes=None):
    address = urlsplit(server.url)
    with socket.socket() as some:
        if receive_bytes is not None:
            some.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        some.settimeout(60)
        some.connect((address.hostname, address.port))
        yield some


def rest(some):
    """Return all bytes until the server closes."""
    parts = []
    while part := some.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def error_of(answer, status):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % status)
    assert b"application/json" in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_headers_that_do_not_end_get_408():
    with running_server(header_timeout_s=1) as server:
        with connection(server) as some:
            some.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
            assert "headers" in error_of(rest(some), 408)["message"]
        with connection(server) as silent:
            assert rest(silent) == b"", "a connection opened in advance is closed without a word"


def test_the_second_request_of_a_connection_is_watched_too_and_idle_ones_are_not():
    with running_server(header_timeout_s=1) as server, connection(server) as some:
        whole = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
        for _ in range(2):
            some.sendall(whole)
            answer = http.client.HTTPResponse(some)
            answer.begin()
            assert (answer.status, json.loads(answer.read())) == (200, {"status": "ok"})
        some.sendall(whole[:20])
        error_of(rest(some), 408)


def test_a_body_that_goes_on_after_its_answer_is_cut_off():
    with running_server(body_timeout_s=0.05) as server, connection(server) as some:
        some.sendall(b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n")
        answer = http.client.HTTPResponse(some)
        answer.begin()
        assert answer.status == 415
        answer.read()
        with suppress(OSError):
            some.sendall(b"x")  # at which uvicorn stops the timer of idle connections
        server.until(lambda engine: not server.connections)


def test_a_client_that_does_not_read_is_cut_off():
    """Its answer is 12 MB: more than the system keeps for a connection."""
    with running_server(write_timeout_s=0.05, max_body_bytes=4 << 20) as server:
        body = json.dumps({"prompt": "~" * (3 << 20)}).encode()
        with connection(server, receive_bytes=4096) as some:
            head = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            some.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            assert some.recv(10) == b"HTTP/1.1 2"
            server.until(lambda engine: not server.connections)


def test_headers_without_end_and_what_is_no_http_get_400_in_the_apis_shape():
    with running_server() as server:
        for flood in (
            b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000,
            b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 12_000,
            b"\x16\x03\x01\r\n\r\n",
        ):
            with connection(server) as some:
                some.sendall(flood[:20_000])
                error_of(rest(some), 400)


def test_too_many_connections_get_503_in_the_apis_shape():
    with (
        running_server(max_connections=2) as server,
        connection(server),
        connection(server),
        connection(server) as some,
    ):
        some.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert error_of(rest(some), 503)["code"] == "unavailable"
