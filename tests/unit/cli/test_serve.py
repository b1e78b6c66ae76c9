"""``forerun serve``: its options, its refusals, and its end by a signal."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import fields

import pytest

from forerun.cli.main import build_parser, main
from forerun.cli.serve import _server_config
from forerun.core.errors import ConfigError
from forerun.engine.server.config import ServerConfig


def config(monkeypatch, *arguments, keys=""):
    monkeypatch.setenv("FORERUN_API_KEYS", keys)
    return _server_config(build_parser().parse_args(["serve", *arguments]))


def test_every_option_has_an_argument_but_the_keys(monkeypatch):
    assert config(monkeypatch) == ServerConfig()
    given = config(
        monkeypatch, "--host", "::1", "--port", "0", "--model-name", "m", "--max-num-batched-tokens", "32",
        "--max-cached-tokens", "9000",
        "--max-waiting", "0", "--max-choices", "2", "--max-body-bytes", "100", "--body-timeout-s", "1",
        "--request-timeout-s", "2",
        "--drain-timeout-s", "3", "--max-connections", "4", "--cors-origins", "https://a", "https://b",
        "--allowed-hosts", "models.example",
        "--no-reuses-prefixes", "--logs-prompts", "--unix-socket", "s", "--root-path", "/llm", "--tls-certificate", "c",
        "--tls-key", "k", "--header-timeout-s", "5", "--write-timeout-s", "6", keys="one, two,",
    )  # fmt: skip
    changed = [
        field.name for field in fields(given) if getattr(given, field.name) == getattr(ServerConfig(), field.name)
    ]
    assert changed == []
    assert (given.api_keys, given.cors_origins) == (("one", "two"), ("https://a", "https://b"))
    assert "one" not in repr(given)


@pytest.mark.parametrize(
    "fields",
    [
        {"port": 70000},
        {"max_choices": 0},
        {"max_waiting": -1},
        {"drain_timeout_s": 0},
        {"api_keys": ("\u00fc",)},
        {"cors_origins": ("https://page.example/",)},
        {"allowed_hosts": ("models.example:443",)},
    ],
)
def test_options_out_of_range_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        ServerConfig(**fields)


@pytest.mark.parametrize(
    "options",
    [{"tls_key": "k"}, {"root_path": "llm"}, {"root_path": "/llm/"}, {"header_timeout_s": 0}],
)
def test_options_that_do_not_go_together_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        ServerConfig(**options)


def test_keys_come_from_the_variable_and_from_a_file(monkeypatch, tmp_path):
    file = tmp_path / "keys"
    file.write_text("three\n\n  four  \n")
    assert config(monkeypatch, "--api-keys-file", str(file), keys="one").api_keys == ("one", "three", "four")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="api_keys"):
        config(monkeypatch, "--api-keys-file", str(file))


def test_the_log_leaves_loggers_as_they_were(capsys):
    pytest.importorskip("starlette")
    from forerun.engine.server.json_log import LOGGER, log_event, log_to_stderr

    before = (LOGGER.handlers, LOGGER.propagate, LOGGER.level)
    with log_to_stderr():
        log_event("told", number=1)
    log_event("not told")
    assert (LOGGER.handlers, LOGGER.propagate, LOGGER.level) == before
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line) | {"time": ""} == {"time": "", "level": "info", "event": "told", "number": 1}


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_that_ends_a_thread_is_a_line_of_the_log(capsys):
    pytest.importorskip("starlette")
    from forerun.engine.server.json_log import log_to_stderr

    with log_to_stderr():
        thread = threading.Thread(target=lambda: 1 / 0, name="engine")
        thread.start()
        thread.join()
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["level"], told["thread"]) == ("critical", "engine")
    assert "ZeroDivisionError" in told["traceback"]


def test_a_taken_port_is_said_before_any_model_is_loaded(capsys):
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "--target", "missing.gguf", "--port", str(taken.getsockname()[1])]) == 2
    error = capsys.readouterr().err
    assert "cannot be listened on" in error
    assert error.count("\n") == 1


def test_a_missing_model_is_one_line(capsys):
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    assert main(["serve", "--target", "missing.gguf", "--port", "0"]) == 2
    assert "missing.gguf" in capsys.readouterr().err


@pytest.mark.model
@pytest.mark.slow
def test_the_embedded_model_is_served_as_it_decodes_offline_and_ends_with_sigterm():
    """By every method, side by side: greedy, and with a seed, the texts are those of the engine without a server."""
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    from concurrent.futures import ThreadPoolExecutor

    from forerun import LLM, SamplingParams

    prompts = ["The capital of France is", "Once upon a time there was a"]
    params = {"greedy": {"temperature": 0}, "sampled": {"temperature": 0.7, "seed": 3}}
    with LLM(method="none", max_model_len=256) as llm:
        expected = {
            (kind, prompt): llm.generate(prompt, SamplingParams(max_tokens=24, **some))[0].text
            for kind, some in params.items()
            for prompt in prompts
        }
    command = [sys.executable, "-c", "import sys; from forerun.cli.main import main; sys.exit(main())", "serve"]
    options = ["--port", "0", "--max-model-len", "256", "--max-num-seqs", "3"]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        methods = httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]["methods"]

        def ask(case):
            kind, prompt, method = case
            body = {"prompt": prompt, "max_tokens": 24, "method": method} | params[kind]
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=200)
            return answer.json()["choices"][0]["text"]

        cases = [(kind, prompt, method) for kind in params for prompt in prompts for method in methods]
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(ask, cases)) == [expected[kind, prompt] for kind, prompt, _ in cases]
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=60)
    assert server.returncode == 0
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events[0] == "listening"
    assert "draining" in events
    assert "France" not in log
