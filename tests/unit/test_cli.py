"""The command line: exit status, where errors go, and what the small commands print and write."""

import json
import os
import re
import subprocess
import sys
from types import ModuleType

import pytest

import forerun
from forerun.cli import main as cli
from forerun.cli.console import write_json
from forerun.cli.options import input_file, output_file
from forerun.core.errors import ConfigError, MissingDependencyError


@pytest.fixture
def command(monkeypatch):
    """Register a command `fake` that does what the test says."""

    def register(action):
        module = ModuleType("forerun.cli.fake")
        module.add_parser = lambda commands: commands.add_parser("fake", help="a test's own")
        module.run = lambda args: action()
        monkeypatch.setitem(sys.modules, "forerun.cli.fake", module)
        monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, "fake"))

    return register


def raise_(error: BaseException):
    raise error


@pytest.mark.parametrize("status", [0, 1])
def test_status_is_the_commands_own(command, status):
    command(lambda: status)
    assert cli.main(["fake"]) == status


@pytest.mark.parametrize(
    "error", [ConfigError("k=0: must be >= 1;\n  set k=1"), MissingDependencyError("k=0: must be >= 1; set k=1")]
)
def test_expected_error_is_one_line_on_stderr_and_status_2(command, capsys, error):
    command(lambda: raise_(error))
    assert cli.main(["fake"]) == 2
    assert capsys.readouterr() == ("", "forerun: error: k=0: must be >= 1; set k=1\n")


def test_debug_shows_the_traceback_of_an_expected_error(command, monkeypatch):
    monkeypatch.setenv("FORERUN_DEBUG", "1")
    command(lambda: raise_(ConfigError("wrong")))
    with pytest.raises(ConfigError):
        cli.main(["fake"])


def test_a_bug_keeps_its_traceback(command):
    command(lambda: raise_(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["fake"])


def test_ctrl_c_is_status_130_and_silent(command, capsys):
    command(lambda: raise_(KeyboardInterrupt()))
    assert cli.main(["fake"]) == 130
    assert capsys.readouterr() == ("", "")


def test_reader_that_leaves_early_gets_no_traceback():
    program = "from forerun.cli.main import main; import sys; sys.exit(main(['cite']))"
    read_end, write_end = os.pipe()
    os.close(read_end)
    finished = subprocess.run([sys.executable, "-c", program], stdout=write_end, stderr=subprocess.PIPE, timeout=60)
    os.close(write_end)
    assert finished.returncode == 141
    assert finished.stderr == b""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required: COMMAND"),
        (["no-such-command"], "invalid choice: 'no-such-command'"),
        (["doctor", "--jsn", "x"], "unrecognized arguments: --jsn"),
        (["doctor", "--js", "x"], "unrecognized arguments: --js"),
        (["config", "show", "--js", "x"], "unrecognized arguments: --js"),
        (["cite", "sdd"], "sdd: unknown part; did you mean ssd?"),
        (["doctor", "--json", "no-such-folder/x.json"], "the folder 'no-such-folder' does not exist"),
    ],
)
def test_bad_arguments_are_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {name.replace('_', '-')}\b", text, flags=re.MULTILINE) for name in cli.COMMANDS)


def test_every_command_has_help_of_its_own(capsys):
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as caught:
            cli.main([name.replace("_", "-"), "--help"])
        assert caught.value.code == 0
        assert "usage: forerun" in capsys.readouterr().out


def test_cite_prints_each_entry_once_with_its_number(capsys):
    assert cli.main(["cite"]) == 0
    text = capsys.readouterr().out
    numbers = re.findall(r"eprint\s+= \{([\d.]+)\}", text)
    engine = {"2211.17192", "2302.01318", "2408.07978", "2502.02737", "2603.03251"}
    assert set(numbers) == engine | {"2503.02113", "2509.14786", "2410.05364", "2511.08544", "2603.19312"}
    assert len(set(numbers)) == len(numbers)
    assert text.count("{") == text.count("}")


def test_cite_one_part(capsys):
    assert cli.main(["cite", "coupled", "coupled"]) == 0
    assert re.findall(r"^@misc\{(\w+),", capsys.readouterr().out, flags=re.MULTILINE) == ["daliri2024coupling"]


def test_config_show_prints_and_writes_where_values_come_from(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FORERUN_SPECULATIVE_FAN_OUT", "geometric")
    file = tmp_path / "config.json"
    assert cli.main(["config", "show", "--json", str(file)]) == 0
    assert 'speculative.fan_out = "geometric"   (environment; ' in capsys.readouterr().out
    rows = {row["key"]: row for row in json.loads(file.read_text())["options"]}
    assert rows["speculative.fan_out"]["origin"] == "environment"
    assert rows["speculative.fan_out"]["default"] == "joint"
    assert rows["speculative.drafter_timeout_s"]["unit"] == "s"
    assert rows["target"]["origin"] == "default"
    assert all(row["meaning"] for row in rows.values())


def test_config_show_refuses_a_misspelt_variable(capsys, monkeypatch):
    monkeypatch.setenv("FORERUN_METOD", "ssd")
    assert cli.main(["config", "show"]) == 2
    assert "FORERUN_METOD: unknown environment variable; did you mean FORERUN_METHOD?" in capsys.readouterr().err


@pytest.mark.slow
def test_doctor_writes_what_it_prints(capsys, tmp_path):
    file = tmp_path / "doctor.json"
    status = cli.main(["doctor", "--json", str(file)])
    text = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert set(found) == {"versions", "cpu", "memory", "threads", "devices", "dtype", "models", "problems"}
    assert status == (1 if found["problems"] else 0)
    assert text.count("problem: ") == len(found["problems"])
    assert found["versions"]["forerun"] == forerun.__version__
    assert found["dtype"]["quantised_file"] in {"int8", "float32"}
    assert found["dtype"]["quantised_file_why"] in text
    assert found["memory"]["available_bytes"] > 0


@pytest.mark.slow
def test_doctor_without_the_model_package_says_what_to_install(capsys, monkeypatch):
    def absent():
        raise MissingDependencyError("the model package is absent; run: pip install it")

    monkeypatch.setattr("forerun.models.load.default_model_path", absent)
    assert cli.main(["doctor"]) == 1
    assert "problem: the model package is absent; run: pip install it\n" in capsys.readouterr().out


def test_json_file_is_replaced_whole(tmp_path):
    file = tmp_path / "result.json"
    file.write_text("old")
    write_json(file, {"rate": 0.5, "missing": float("nan"), "many": (1, float("inf"))})
    assert json.loads(file.read_text()) == {"rate": 0.5, "missing": None, "many": [1, None]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_json_that_cannot_be_encoded_leaves_the_old_file(tmp_path):
    file = tmp_path / "result.json"
    file.write_text("old")
    cycle: dict = {}
    cycle["self"] = [cycle]
    with pytest.raises((ValueError, RecursionError)):
        write_json(file, cycle)
    assert file.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_json_to_a_device_leaves_the_device_in_place():
    device = output_file(os.devnull)
    write_json(device, {"rate": 0.5})
    assert not device.is_file()


def test_json_into_a_folder_that_vanished_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"--json .*cannot be written"):
        write_json(tmp_path / "gone" / "result.json", {})


@pytest.mark.parametrize("check", [input_file, output_file])
def test_a_folder_is_no_file(check, tmp_path):
    with pytest.raises(Exception, match="is a folder; name a file in it"):
        check(str(tmp_path))


def test_input_file_must_exist(tmp_path):
    with pytest.raises(Exception, match="no such file"):
        input_file(str(tmp_path / "absent"))
    (tmp_path / "here").write_text("")
    assert input_file(str(tmp_path / "here")) == tmp_path / "here"
