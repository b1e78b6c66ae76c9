"""Floods of what is no request: every one is answered or closed, and the memory is as before."""

import gc
import json
import socket
from urllib.parse import urlsplit

import psutil

POST = (
    b"POST %s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n"
)


def post(path, body, *, length=None):
    return POST % (path, len(body) if length is None else length) + body


ANSWERED = (
    post(b"/v1/chat/completions", b'{"messages":' + b"[" * 10_000),
    post(b"/v1/completions", b'{"prompt": "\xff\xfe"}'),
    post(b"/v1/completions", b'{"prompt": "' + b"x" * 200_000 + b'", "oops": 1}'),
    post(b"/tokenize", b"", length=10**12),
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 3_300,
    b"\x00" * 1000 + b"\r\n\r\n",
    b"GET /" + b"p" * 5_000 + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
)
LEFT = (
    post(b"/tokenize", b"x" * 50_000, length=100_000),
    post(b"/v1/completions", json.dumps({"prompt": "on and on", "max_tokens": 200, "stream": True}).encode()),
)


def flood(server):
    address = urlsplit(server.url)
    for data in (*ANSWERED, *LEFT):
        with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
            connection.sendall(data)
            answer = b""
            while data not in LEFT and (part := connection.recv(1 << 16)):
                answer += part
            assert data in LEFT or answer.startswith(b"HTTP/1.1 4"), answer[:200]


def test_memory_is_as_before(server, client):
    """Kept bodies would show: those of thirty floods are 9 MB."""

    def resident():
        server.idle()
        server.until(lambda _: len(server.connections) == 0)
        gc.collect()
        return psutil.Process().memory_info().rss

    for _ in range(5):
        flood(server)
    before = resident()
    for _ in range(30):
        flood(server)
    assert resident() - before < 4_000_000
    assert client.get("/health").status_code == 200
