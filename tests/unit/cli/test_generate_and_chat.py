"""The commands `generate` and `chat`: what reaches the engine, what is written where, and how bad input ends."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import psutil
import pytest

from forerun.cli import main as cli
from forerun.cli.chat_session import HELP, ChatSession
from forerun.cli.streaming import visible, write_stream, write_text
from forerun.core.errors import ConfigError, RequestError
from forerun.engine.config import EngineConfig
from forerun.engine.constraint import Constraint
from forerun.engine.outputs import StreamChunk
from forerun.engine.sampling import SamplingParams


def never() -> bool:
    return False


def test_generate_writes_the_text_and_nothing_else(engines, capsys):
    assert cli.main(["generate", "hello"]) == 0
    assert capsys.readouterr() == ("USER: HELLO\n", "")
    assert engines.opened[0].is_closed


def test_generate_raw_leaves_the_prompt_as_it_is(engines, capsys):
    assert cli.main(["generate", "--raw", "hello"]) == 0
    assert capsys.readouterr().out == "HELLO\n"


def test_generate_without_a_chat_template_is_raw_unless_chat_is_asked_for(engines, monkeypatch, capsys):
    def without_template(config):
        engine = engines(config)
        engine.tokenizer.chat_template = None
        return engine

    monkeypatch.setattr("forerun.recipes.text_engine.open_engine", without_template)
    assert cli.main(["generate", "hello"]) == 0
    assert capsys.readouterr().out == "HELLO\n"
    assert cli.main(["generate", "--chat", "hello"]) == 2
    assert "no chat template" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["generate", "--raw", "-"], ["generate", "--raw"]])
def test_generate_reads_a_pipe(engines, pipe_in, capsys, argv):
    pipe_in("sea\nglück\n".encode())
    assert cli.main(argv) == 0
    assert engines.opened[0].calls[0][0] == "sea\nglück"


def test_generate_gives_every_sampling_parameter_to_the_engine(engines):
    argv = (
        "--temperature 0.5 --top-k 4 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.1 --presence-penalty 0.2 "
        "--frequency-penalty 0.3 --logit-bias 42=-1.5 --logit-bias 7=-inf --seed 5 --stop END --stop . "
        "--stop-token-ids 1 2 --min-tokens 2 --max-tokens 9 --logprobs 3 --ignore-eos"
    )
    assert cli.main(["generate", "hello", *argv.split()]) == 0
    assert engines.opened[0].calls[0][1] == SamplingParams(
        temperature=0.5, top_k=4, top_p=0.9, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.3, logit_bias={42: -1.5, 7: float("-inf")}, seed=5, stop=("END", "."),
        stop_token_ids=(1, 2), min_tokens=2, max_tokens=9, logprobs=3, ignore_eos=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value", "constraint"),
    [
        ("--regex", "(yes|no)", Constraint.regex("(yes|no)")),
        ("--json-schema", '{"type": "object"}', Constraint.json_schema('{"type": "object"}')),
    ],
)
def test_generate_constrains_the_output(engines, tmp_path, option, value, constraint):
    if option == "--json-schema":
        path = tmp_path / "schema.json"
        path.write_text(value)
        value = str(path)
    report = tmp_path / "report.json"
    assert cli.main(["generate", "hello", option, value, "--json", str(report)]) == 0
    assert engines.opened[0].calls[0][1] == SamplingParams(constraint=constraint)
    assert json.loads(report.read_text())["manifest"]["sampling"]["constraint"]["text"] == constraint.text


@pytest.mark.parametrize(("schema", "words"), [(b"{", "not valid JSON"), (b"[]", "JSON object"), (b"\xff", "UTF-8")])
def test_a_bad_schema_is_one_line(engines, tmp_path, capsys, schema, words):
    path = tmp_path / "schema.json"
    path.write_bytes(schema)
    assert cli.main(["generate", "hello", "--json-schema", str(path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_an_output_that_cant_go_on_is_an_error(capsys):
    chunk = StreamChunk(
        index=0, text="ye", token_ids=(1,), origins=("target",), finish_reason="error", error="no token"
    )
    with pytest.raises(RequestError, match="no token"):
        write_stream([chunk])
    assert capsys.readouterr().out == "ye\n"


def test_generate_uses_the_defaults_of_the_python_interface(engines):
    assert cli.main(["generate", "hello"]) == 0
    assert engines.opened[0].calls[0][1] == SamplingParams()
    assert engines.opened[0].config == EngineConfig()


def test_an_argument_wins_over_the_environment(engines, monkeypatch):
    monkeypatch.setenv("FORERUN_METHOD", "sequential")
    monkeypatch.setenv("FORERUN_DRAFT", "ngram")
    cli.main(["generate", "hello", "--method", "ssd", "--cores", "1,0", "--max-model-len", "none"])
    config = engines.opened[0].config
    assert (config.method, config.draft, config.cores, config.max_model_len) == ("ssd", "ngram", (1, 0), None)


def test_generate_stats_and_json(engines, tmp_path, capsys):
    file = tmp_path / "out.json"
    assert cli.main(["generate", "--raw", "hello", "--method", "ssd", "--stats", "--json", str(file)]) == 0
    text, notes = capsys.readouterr()
    assert text == "HELLO\n"
    assert "tokens/s on 2 cores" in notes
    written = json.loads(file.read_text())
    assert (written["prompt"], written["text"], written["finish_reason"]) == ("hello", "HELLO", "stop")
    assert written["token_ids"] == list(b"HELLO")
    assert len(written["origins"]) == 5
    assert written["metrics"]["cache_hit_rate"] == 0.9
    assert written["manifest"]["engine"]["method"] == "ssd"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x", "--top-p", "0"], "top_p=0.0: must be in (0, 1]"),
        (["x", "--min-tokens", "9", "--max-tokens", "3"], "min_tokens must not be larger"),
        (["x", "--logit-bias", "3=1", "--logit-bias", "3=2"], "names a token twice"),
        (["too long"], "this model's context is 8"),
        ([" "], "must hold some text"),
    ],
)
def test_bad_requests_are_one_line_and_status_2(engines, argv, message, capsys, tmp_path):
    file = tmp_path / "out.json"
    assert cli.main(["generate", *argv, "--json", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
    assert not file.exists()
    assert all(engine.is_closed for engine in engines.opened)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["generate", "x", "--logit-bias", "a=1"], "must be ID=NATS"),
        (["generate", "x", "--method", "fast"], "must be one of none, sequential, ssd, auto"),
        (["generate", "x", "--chat", "--raw"], "not allowed with argument --chat"),
        (["generate", "x", "-K", "two"], "must be a whole number"),
        (["chat", "--temprature", "1"], "unrecognized arguments"),
    ],
)
def test_bad_arguments_are_status_2(engines, argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_prompt_that_is_no_text_is_refused(engines, pipe_in, capsys):
    pipe_in(b"\xff\xfe")
    assert cli.main(["generate"]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_control_codes_are_shown_on_a_terminal_and_kept_in_a_pipe(monkeypatch, capsys):
    assert visible("a\x1b[2Jb\tc\nd\x9b\x07") == "a�[2Jb\tc\nd��"
    write_text("\x1b[1m")
    assert capsys.readouterr().out == "\x1b[1m"
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", screen)
    write_text("\x1b[1m")
    assert screen.getvalue() == "�[1m"


@pytest.fixture
def session(engines):
    opened = ChatSession(EngineConfig(), SamplingParams(), open_engine=engines)
    yield opened
    opened.close()
    assert all(engine.is_closed for engine in engines.opened), "every engine a session opens it closes"


def test_a_conversation_is_remembered(session, engines):
    session.handle("one", is_stopped=never)
    session.handle("two", is_stopped=never)
    assert [text for text, _ in engines.opened[0].calls] == [
        "user: one",
        "user: one\nassistant: USER: ONE\nuser: two",
    ]


def test_reset_forgets_and_system_stays(session, engines):
    for line in ("/system be brief", "one", "/reset", "two", "   "):
        assert session.handle(line, is_stopped=never)
    assert [text for text, _ in engines.opened[0].calls] == [
        "system: be brief\nuser: one",
        "system: be brief\nuser: two",
    ]


def test_another_method_goes_on_with_the_conversation(session, engines):
    session.handle("one", is_stopped=never)
    session.handle("/method ssd", is_stopped=never)
    session.handle("two", is_stopped=never)
    first, second = engines.opened
    assert (first.is_closed, second.config.method) == (True, "ssd")
    assert second.calls[0][0].startswith("user: one\nassistant: ")


def test_stats_are_of_the_last_reply(session, capsys):
    session.handle("/stats", is_stopped=never)
    session.handle("one", is_stopped=never)
    session.handle("/stats", is_stopped=never)
    assert re.search(r"no reply yet\n.*auto: \d+\.\d tokens/s on 1 core ", capsys.readouterr().out, flags=re.DOTALL)


def test_help_names_every_command(session, capsys):
    session.handle("/help", is_stopped=never)
    text = capsys.readouterr().out
    assert all(usage in text for usage in HELP)
    assert not session.handle("/quit", is_stopped=never)


@pytest.mark.parametrize(
    ("line", "message"),
    [("/stat", "did you mean /stats"), ("/method sdd", "did you mean ssd"), ("too long", "context is 8")],
)
def test_a_line_that_cannot_be_served_changes_nothing(session, engines, line, message):
    session.handle("one", is_stopped=never)
    with pytest.raises((ConfigError, RequestError), match=message):
        session.handle(line, is_stopped=never)
    session.handle("two", is_stopped=never)
    assert engines.opened[0].calls[-1][0] == "user: one\nassistant: USER: ONE\nuser: two"


def test_a_stopped_reply_is_kept_as_far_as_it_went(session, engines):
    asked = iter([False, True])
    session.handle("one", is_stopped=lambda: next(asked))
    assert session.turns[0]["finish_reason"] == "cancelled"
    assert engines.opened[0].num_streams_open == 0, "the engine is told to stop"
    session.handle("two", is_stopped=never)
    assert engines.opened[0].calls[-1][0] == "user: one\nassistant: USER\nuser: two"


def test_a_model_without_a_chat_template_is_refused(engines):
    def without_template(config):
        engine = engines(config)
        engine.tokenizer.chat_template = None
        return engine

    with pytest.raises(RequestError, match="no chat template"):
        ChatSession(EngineConfig(), SamplingParams(), open_engine=without_template)
    assert engines.opened[0].is_closed


def test_chat_takes_lines_from_a_pipe(engines, pipe_in, capsys, tmp_path):
    pipe_in(b"one\n/method sequential\ntwo")
    file = tmp_path / "chat.json"
    assert cli.main(["chat", "--json", str(file), "--system", "be brief", "--seed", "1"]) == 0
    assert capsys.readouterr() == ("USER: ONE\nmethod: sequential\nUSER: TWO\n", "")
    assert [turn["user"] for turn in json.loads(file.read_text())["turns"]] == ["one", "two"]


def test_chat_from_a_pipe_goes_on_after_a_bad_line_and_ends_with_status_2(engines, pipe_in, capsys):
    pipe_in(b"too long\none\n/quit\nnever said\n")
    assert cli.main(["chat"]) == 2
    out, err = capsys.readouterr()
    assert out == "USER: ONE\n"
    assert "context is 8" in err


TERMINAL_CHAT = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("fake", {conftest!r})
fake = importlib.util.module_from_spec(spec)
sys.modules["fake"] = fake
spec.loader.exec_module(fake)

class Slow(fake.FakeEngine):
    def _chunks(self, output):
        for chunk in super()._chunks(output * 100):
            time.sleep(0.02)
            yield chunk

import forerun.recipes.text_engine as text_engine
text_engine.open_engine = lambda config: Slow(config=config, answer=lambda text, config: text)
from forerun.cli.main import main
sys.exit(main(["chat"]))
"""


@pytest.fixture
def terminal_chat(request):
    """Run the chat on a terminal of its own; gives its process, a reader that waits for some text, and a writer."""
    main, its = pty.openpty()
    code = TERMINAL_CHAT.format(conftest=str(request.path.with_name("conftest.py")))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=its, stdout=its, stderr=its, start_new_session=True,
        env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(its)
    seen = ""

    def wait_for(text: str) -> None:
        nonlocal seen
        deadline_s = time.monotonic() + 60
        while text not in seen:
            is_ready = select.select([main], [], [], max(0.0, deadline_s - time.monotonic()))[0]
            assert is_ready, f"{text!r} did not come; saw {seen!r}"
            seen += os.read(main, 1000).decode(errors="replace")
        seen = seen.partition(text)[2]

    yield process, wait_for, lambda line: os.write(main, line.encode())
    process.kill()
    process.wait()
    os.close(main)


def interrupt_at_the_prompt(process):
    """Send Ctrl-C once the process sleeps: one that comes between the prompt and the read waits for the next key."""
    asleep = 0
    deadline_s = time.monotonic() + 60
    while asleep < 5:
        assert time.monotonic() < deadline_s, "the chat never waits for a line"
        asleep = asleep + 1 if psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING else 0
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)


def test_ctrl_c_stops_the_reply_and_a_second_one_leaves(terminal_chat):
    process, wait_for, write = terminal_chat
    wait_for("> ")
    write("hello\n")
    wait_for("user: hello")
    process.send_signal(signal.SIGINT)
    wait_for("> ")
    write("again\n")
    wait_for("user: again")
    process.send_signal(signal.SIGINT)
    wait_for("> ")
    interrupt_at_the_prompt(process)
    assert process.wait(timeout=60) == 130


def test_ctrl_c_at_the_prompt_asks_before_it_leaves(terminal_chat):
    process, wait_for, write = terminal_chat
    wait_for("> ")
    interrupt_at_the_prompt(process)
    wait_for("Ctrl-C again")
    wait_for("> ")
    write("/quit\n")
    assert process.wait(timeout=60) == 0
