"""The race: what it measures, when it says outputs differ, and what the command writes."""

import io
import json
import re
import warnings
from dataclasses import replace

import pytest
from rich.console import Console

from forerun.cli import main as cli
from forerun.cli.race_screen import RaceScreen, fits
from forerun.core.errors import ConfigError, RequestError
from forerun.engine.config import EngineConfig, SpeculativeConfig
from forerun.engine.sampling import SamplingParams
from forerun.recipes.prompt_file import DEFAULT_PROMPTS, Prompt, read_prompts
from forerun.recipes.race import RaceConfig, RaceObserver, race
from forerun.recipes.race_result import totals

PROMPTS = (Prompt(text="twelve chars", kind="chat"), Prompt(text="and some more of them", kind="code"))
NUM_TOKENS = {index: len(f"USER: {prompt.text}") for index, prompt in enumerate(PROMPTS)}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@pytest.fixture
def result(engines):
    return race(RaceConfig(prompts=PROMPTS), open_engine=engines)


def test_each_method_runs_alone_on_the_same_chat_prompts(engines):
    race(RaceConfig(prompts=PROMPTS, warmup_tokens=4), open_engine=engines)
    assert [engine.config.method for engine in engines.opened] == ["none", "sequential", "ssd"]
    assert engines.most_open == 1
    assert all(engine.is_closed for engine in engines.opened)
    for engine in engines.opened:
        texts, limits = zip(*[(text, params.max_tokens) for text, params in engine.calls], strict=True)
        assert texts == tuple(f"user: {PROMPTS[index].text}" for index in (0, 0, 1))
        assert limits == (4, 128, 128), "an untimed run first"


def test_a_model_without_a_chat_template_gets_the_prompts_as_they_are(engines):
    def open_engine(config):
        engine = engines(config)
        engine.tokenizer.chat_template = None
        return engine

    race(RaceConfig(prompts=PROMPTS, racers=("ar",)), open_engine=open_engine)
    assert [text for text, _ in engines.opened[0].calls] == [PROMPTS[index].text for index in (0, 0, 1)]


def test_engine_is_closed_when_a_prompt_is_refused(engines):
    with pytest.raises(RequestError, match="context is 8"):
        race(RaceConfig(prompts=(Prompt(text="too long"),)), open_engine=engines)
    assert [engine.is_closed for engine in engines.opened] == [True]


def test_nothing_is_observed_during_a_timed_run(engines):
    events = []

    class Listener(RaceObserver):
        def token(self, racer, token):
            events.append("token")

        def timing(self, racer, prompt_index):
            events.append("timing")

        def timed(self, run):
            events.append("timed")

    race(RaceConfig(prompts=PROMPTS, racers=("sd",), warmup_tokens=4), observer=Listener(), open_engine=engines)
    assert events == ["token"] * 4 + ["timing", "timed"] * 2


def test_tokens_keep_text_origin_and_the_order_of_time(result):
    run = result.runs["ssd"][0]
    assert "".join(token.text for token in run.tokens) == "USER: TWELVE CHARS"
    assert [token.origin for token in run.tokens[:5]] == ["cache_hit"] * 3 + ["target", "cache_hit"]
    times_s = [token.time_s for token in run.tokens]
    assert times_s == sorted(times_s)
    assert times_s[0] > 0
    assert len(set(times_s[:4])) == 1, "tokens of one round arrive together"


def test_a_character_spread_over_tokens_is_the_last_ones_text(engines):
    engines.answer = lambda text, config: "é!"
    run = race(RaceConfig(racers=("ar",)), open_engine=engines).runs["ar"][0]
    assert [token.text for token in run.tokens] == ["", "é", "!"]


def test_totals_are_of_all_tokens_over_all_time(result):
    num_tokens = sum(NUM_TOKENS.values())
    for racer, seconds_a_token in (("ar", 1.0), ("sd", 0.5)):
        total = result.totals[racer]
        assert total.num_tokens == num_tokens
        assert total.tokens_per_s == pytest.approx((num_tokens - len(PROMPTS)) / (num_tokens * seconds_a_token))
        assert total.prefill_s == pytest.approx(0.5 * len(PROMPTS))
    assert result.speedup["sd_over_ar"] == pytest.approx(2.0)
    assert result.totals["ssd"].cache_hit_rate == pytest.approx(0.9)
    assert [total.cores for total in result.totals.values()] == [1, 1, 2]


def test_rates_are_weighted_by_their_counts_and_shares_by_time(result):
    short, long = result.runs["ssd"]
    short = replace(short, metrics=replace(short.metrics, num_proposed=1, acceptance_rate=0.0, decode_s=1.0))
    long = replace(
        long,
        metrics=replace(long.metrics, num_proposed=3, acceptance_rate=1.0, decode_s=9.0, non_verify_share=0.75),
    )
    both = totals([short, long])
    assert both.acceptance_rate == pytest.approx(3 / 4)
    assert both.non_verify_share == pytest.approx((0.25 * 1 + 0.75 * 9) / 10)


def test_a_race_of_one_method_has_no_ratio(engines):
    alone = race(RaceConfig(prompts=PROMPTS, racers=("ssd",)), open_engine=engines)
    assert alone.speedup == {"sd_over_ar": None, "ssd_over_ar": None, "ssd_over_sd": None}


def test_equal_outputs_are_identical(result):
    assert result.divergence is None
    assert result.as_dict()["identical_greedy"] is True


def swap_token(text, config):
    """Answer 15 bytes, of which SSD has one other than the rest; only on the second prompt."""
    answer = text.upper()
    return answer.replace("SOME", "SOXE") if config.method == "ssd" else answer


def test_first_difference_is_found(engines):
    engines.answer = swap_token
    result = race(RaceConfig(prompts=PROMPTS), open_engine=engines)
    divergence = result.divergence
    assert divergence is not None
    assert (divergence.prompt_index, divergence.position) == (1, len("user: and so"))
    assert divergence.texts == {"ar": "M", "sd": "M", "ssd": "X"}
    assert divergence.token_ids == {"ar": ord("M"), "sd": ord("M"), "ssd": ord("X")}
    assert result.as_dict()["identical_greedy"] is False


def test_an_output_that_ends_early_differs_where_it_ends(engines):
    engines.answer = lambda text, config: "abc" if config.method == "none" else "ab"
    divergence = race(RaceConfig(prompts=PROMPTS), open_engine=engines).divergence
    assert divergence is not None
    assert divergence.position == 2
    assert divergence.token_ids == {"ar": ord("c"), "sd": None, "ssd": None}


def test_greedy_word_is_not_said_of_a_race_that_sampled(engines):
    sampled = RaceConfig(prompts=PROMPTS, sampling=SamplingParams(temperature=0.7, seed=3))
    written = race(sampled, open_engine=engines).as_dict()
    assert (written["identical_greedy"], written["identical"], written["identity_expected"]) == (None, True, True)


def test_rejection_sampling_need_not_agree():
    config = EngineConfig(speculative=SpeculativeConfig(verification="rejection"))
    assert not RaceConfig(engine=config, sampling=SamplingParams(seed=1)).expects_identity
    assert RaceConfig(engine=config).expects_identity, "greedy is the same under both"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": ()}, "at least one prompt"),
        ({"racers": ()}, "one or more of ar, sd, ssd"),
        ({"racers": ("ar", "ar")}, "each once"),
        ({"sampling": SamplingParams()}, "set a seed"),
    ],
)
def test_a_race_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        RaceConfig(**options)


def test_warnings_of_the_engine_are_in_the_result(engines):
    def warn(text, config):
        warnings.warn("the drafter died", RuntimeWarning, stacklevel=1)
        return "ab"

    engines.answer = warn
    assert race(RaceConfig(), open_engine=engines).warnings == ("the drafter died",)


def test_json_has_what_was_promised(engines, tmp_path, capsys):
    file = tmp_path / "race.json"
    assert cli.main(["race", "--json", str(file), "--max-tokens", "9", "--num-prompts", "2"]) == 0
    written = json.loads(file.read_text())
    assert set(written["methods"]) == {"ar", "sd", "ssd"}
    promised = {
        "tokens_per_s", "num_tokens", "cores", "acceptance_rate", "mean_acceptance_length", "cache_hit_rate",
        "non_verify_share",
    }  # fmt: skip
    assert all(promised <= set(method) for method in written["methods"].values())
    assert set(written["speedup"]) == {"sd_over_ar", "ssd_over_ar", "ssd_over_sd"}
    assert written["identical_greedy"] is True
    manifest = written["manifest"]
    assert {"versions", "cpu", "prompts_sha256", "seed", "engine", "sampling"} <= set(manifest)
    assert manifest["seed"] == 0
    assert [prompt["text"] for prompt in written["prompts"]] == [prompt.text for prompt in DEFAULT_PROMPTS[:2]]
    output = written["prompts"][1]["outputs"]["ssd"]
    assert len(output["token_ids"]) == len(output["token_times_s"]) == len(output["origins"]) == 9


def test_without_a_terminal_there_are_plain_lines(engines, capsys):
    assert cli.main(["race", "--num-prompts", "1"]) == 0
    text, errors = capsys.readouterr()
    assert errors == ""
    assert not CONTROL.search(text)
    assert "ssd: prompt 1/1 (chat): " in text
    assert re.search(r"speed-up over AR +1\.00x +\d\.\d\dx +\d\.\d\dx", text)
    assert "Outputs: identical, token for token" in text


def test_a_picture_has_the_panes_and_the_table(engines, tmp_path, capsys):
    file = tmp_path / "race.svg"
    assert cli.main(["race", "--num-prompts", "1", "--svg", str(file)]) == 0
    picture = file.read_text()
    assert picture.startswith("<svg")
    assert 'url("' not in picture, "a picture fetches nothing"
    for words in ("AR", "SSD", "speed-up", "cache", "identical"):
        assert words in picture
    assert not CONTROL.search(capsys.readouterr().out)


def test_outputs_that_differ_are_status_1_and_named(engines, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("twelve chars\nand some more of them\n")
    engines.answer = swap_token
    assert cli.main(["race", "--prompts", str(tmp_path / "prompts.txt")]) == 1
    assert "first at prompt 2 (prompt), token 13: AR has 'M' (77), SD has 'M' (77), SSD has 'X' (88)" in (
        capsys.readouterr().out
    )


def test_the_command_gives_the_engine_what_it_was_given(engines, monkeypatch):
    monkeypatch.setenv("FORERUN_TARGET", "from-environment")
    monkeypatch.setenv("FORERUN_SPECULATIVE_BRANCH_BUDGET", "7")
    argv = "race --methods ssd,ar --draft ngram -K 3 --fan-out uniform --temperature 0.5 --seed 9 --ignore-eos"
    cli.main([*argv.split(), "--num-prompts", "1"])
    assert [engine.config.method for engine in engines.opened] == ["none", "ssd"]
    config = engines.opened[1].config
    assert (config.target, config.draft) == ("from-environment", "ngram")
    assert (config.speculative.num_speculative_tokens, config.speculative.branch_budget) == (3, 7)
    assert config.speculative.fan_out == "uniform"
    params = engines.opened[1].calls[-1][1]
    assert (params.temperature, params.seed, params.ignore_eos) == (0.5, 9, True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--methods", "ar,sdd"], "sdd: unknown method of the race; did you mean sd"),
        (["--max-tokens", "0"], "0: must be >= 1"),
        (["--replay-slowdown", "0.5"], r"must be in \[1, 10\]"),
        (["--prompts", "absent.jsonl"], "no such file"),
        (["--fan-out", "even"], "must be one of joint, uniform, geometric, measured"),
        (["--method", "ssd"], "unrecognized arguments: --method"),
    ],
)
def test_bad_arguments_are_status_2(engines, argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["race", *argv])
    assert caught.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_bad_values_are_one_line_and_status_2(engines, capsys):
    assert cli.main(["race", "--temperature", "-1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_prompts_come_in_three_formats(tmp_path):
    file = tmp_path / "prompts"
    file.write_text("\nfirst\n  second \n")
    assert [prompt.text for prompt in read_prompts(file)] == ["first", "second"]
    file.write_text(
        '{"prompt": "a", "kind": "code"}\n\n{"question_id": 81, "category": "writing", "turns": ["b", "c"]}'
    )
    assert read_prompts(file) == (Prompt(text="a", kind="code"), Prompt(text="b", kind="writing"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b'{"prompt": "a"}\nb', r":2: not valid JSON"),
        (b'{"prompt": "a"}\n[1]', r":2: must be a JSON object"),
        (b'{"prompt": 3}', r":1: has no text"),
        (b'{"turns": []}', r":1: has no text"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_a_bad_prompt_file_names_the_line(tmp_path, content, message):
    file = tmp_path / "prompts"
    file.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_prompts(file)


def terminal(width, height):
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, _environ={"TERM": "xterm"})


@pytest.mark.parametrize(("width", "height"), [(72, 12), (80, 24), (140, 40), (24, 22), (60, 50)])
def test_screen_draws_every_frame_inside_the_terminal(engines, width, height):
    engines.answer = lambda text, config: f"{text} wörd 日本語\x1b[2J\tz\n" * 6
    config = RaceConfig(prompts=PROMPTS, warmup_tokens=None)
    console = terminal(width, height)
    assert fits(console, num_panes=3)
    screen = RaceScreen(config, console=console)
    with screen:
        result = race(config, observer=screen, open_engine=engines)
        screen.replay(result, slowdown=1.0)
        last = console.render_lines(screen._frame(), console.options.update_height(height))
    assert len(last) == height
    assert {sum(segment.cell_length for segment in line) for line in last} == {width}
    text = "".join(segment.text for line in last for segment in line)
    assert not CONTROL.search(text), "a model can't send control codes to the terminal"
    assert text.count("z") >= 3
    assert all(f"{name} " in text for name in ("AR", "SD", "SSD"))
    written = console.file.getvalue()
    assert written.count("\x1b[?1049h") == written.count("\x1b[?1049l") == 1, "the terminal is given back"


def test_screen_gives_the_terminal_back_after_an_error(engines):
    config = RaceConfig(prompts=(Prompt(text="too long"),))
    console = terminal(80, 24)
    with pytest.raises(RequestError), RaceScreen(config, console=console) as screen:
        race(config, observer=screen, open_engine=engines)
    assert console.file.getvalue().count("\x1b[?1049l") == 1


def test_replay_ends_with_every_token_of_the_timed_runs(engines):
    console = terminal(140, 40)
    config = RaceConfig(prompts=PROMPTS, warmup_tokens=2)
    screen = RaceScreen(config, console=console)
    with screen:
        result = race(config, observer=screen, open_engine=engines)
        screen.replay(result)
        assert {pane.num_tokens for pane in screen._panes.values()} == {NUM_TOKENS[0]}


@pytest.mark.parametrize(("width", "height"), [(71, 21), (23, 60), (80, 11)])
def test_a_terminal_that_is_too_small_has_no_screen(width, height):
    assert not fits(terminal(width, height), num_panes=3)


def test_a_terminal_without_a_cursor_has_no_screen():
    dumb = Console(file=io.StringIO(), force_terminal=True, width=140, height=40, _environ={"TERM": "dumb"})
    assert not fits(dumb, num_panes=3)
