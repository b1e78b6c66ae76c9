"""Two engines under Ray Serve, as a user starts them: one server to clients, whichever of them lives."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import cycle

import psutil
import pytest

pytest.importorskip("httpx")
pytest.importorskip("openai")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families
from simulated.byte_model import save_byte_model

from forerun import LLM, SamplingParams

MISSING = [name for name in ("fastapi", "grpc_reflection", "mmh3", "ray") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two engines need two cores"),
]

NUM_TOKENS = 12
LONG = 100
PROGRAM = "import sys; from forerun.cli.main import main; sys.exit(main())"


class Running:
    """A server's process, and clients of it."""

    def __init__(self, process, url):
        self.process = process
        self.http = httpx.Client(base_url=url, timeout=200, verify=False)
        self.api = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=200, max_retries=20)
        self.model = self.api.models.list().data[0].id

    def ask(self, prompt, *, max_tokens=NUM_TOKENS, **options):
        return self.api.completions.create(
            model=self.model, prompt=prompt, max_tokens=max_tokens, temperature=0, **options
        )

    def text(self, prompt):
        return self.ask(prompt).choices[0].text

    def num_alive(self):
        return self.http.get("/health").json()["replicas"]

    def generated(self):
        """Return the tokens that each replica has generated, as far as it has answered."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        samples = next(family for family in families if family.name == "forerun_generated_tokens").samples
        return {sample.labels["replica"]: sample.value for sample in samples if sample.labels["replica"] != "front"}

    def answered_by(self, prompt):
        """Ask, and return which replica answered."""
        before = self.generated()
        self.text(prompt)
        (name,) = (name for name, tokens in self.generated().items() if tokens > before.get(name, 0))
        return name

    def below(self):
        """Return the processes that the server has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def engines(self):
        """Return the processes of the replicas by their numbers."""
        return {child.pid: child for child in self.below() if "ServeReplica:forerun:engine" in _command(child)}


def _command(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def running_server(options):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "serve", *options.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Forerun serves at"), process.communicate()[1]
        running = Running(process, line.split()[-1])
        try:
            yield running
        finally:
            running.http.close()
            running.api.close()
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=120)


def test_two_replicas_are_one_server_a_dead_one_is_replaced_and_sigterm_lets_what_runs_finish(tmp_path):
    """That one of two replicas gets all of 40 prompts has a chance of about 2e-12."""
    save_byte_model(tmp_path / "model", num_layers=1)
    target = str(tmp_path / "model")
    prompts = [f"{number} is a number" for number in range(40)]
    with LLM(target=target, method="none", max_model_len=256) as llm:
        done = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=NUM_TOKENS))
        (long,) = llm.generate("on and on", SamplingParams(temperature=0, max_tokens=LONG))
    expected = {prompt: one.text for prompt, one in zip(prompts, done, strict=True)}

    options = f"--target {target} --method none --replicas 2 --max-model-len 256 --max-num-seqs 2 --port 0"
    with running_server(options) as server:
        assert server.num_alive() == 2
        place = {}
        for prompt in prompts:
            place[prompt] = server.answered_by(prompt)
            assert server.text(prompt) == expected[prompt]
            if len(set(place.values())) == 2:
                break
        assert len(set(place.values())) == 2, "both answer"
        assert {prompt: server.answered_by(prompt) for prompt in place} == place, "what begins alike keeps its place"
        parts = [part.choices[0].text for part in server.ask(prompts[0], stream=True)]
        assert "".join(parts) == expected[prompts[0]]
        assert len(parts) > 1, "a stream comes as it is decided"
        with pytest.raises(openai.BadRequestError, match="tools"):
            server.ask("x", extra_body={"tools": []})

        engines = server.engines()
        assert len(engines) == 2
        cores = {tuple(engine.cpu_affinity()) for engine in engines.values()}
        assert len(cores) == 2, "each has cores of its own"
        killed = min(engines)
        engines[killed].kill()
        assert all(server.text(prompt) == expected[prompt] for prompt in place), "the other one goes on"
        turns = cycle(prompts)
        while not {name for name, tokens in server.generated().items() if tokens > 0} - set(place.values()):
            prompt = next(turns)
            assert server.text(prompt) == expected[prompt], "the new one answers alike"
            time.sleep(0.1)  # leaves it the processor: it is loading
        assert server.num_alive() == 2
        assert {tuple(engine.cpu_affinity()) for engine in server.engines().values()} == cores

        below = server.below()
        stream = server.ask("on and on", max_tokens=LONG, stream=True)
        text = next(iter(stream)).choices[0].text
        server.process.send_signal(signal.SIGTERM)
        assert text + "".join(part.choices[0].text for part in stream) == long.text
        _, log = server.process.communicate(timeout=200)
        assert server.process.returncode == 0, log
    lines = [json.loads(line) for line in log.splitlines()]
    assert "draining" in {line["event"] for line in lines}
    assert len({line["replica"] for line in lines if line.get("completion_tokens")}) == 3
    assert psutil.wait_procs(below, timeout=60)[1] == []
