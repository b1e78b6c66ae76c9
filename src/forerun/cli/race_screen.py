"""The race on a terminal: a pane for each method, live while it decodes untimed, then all of them as recorded.

Drawing takes time from the core that decodes, so nothing is drawn during a timed run. What the panes show live is the
untimed run; the replay afterwards shows the timed ones, each token at its recorded time.
"""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.text import Text

from forerun.cli.streaming import visible
from forerun.engine.outputs import TokenOrigin
from forerun.recipes.race import RaceConfig, RaceObserver
from forerun.recipes.race_result import Racer, RaceResult, RaceRun, RaceToken, totals

NAMES: Final[dict[Racer, str]] = {"ar": "AR", "sd": "SD", "ssd": "SSD"}
ORIGIN_STYLES: Final[dict[TokenOrigin, str]] = {
    "target": "none",
    "draft": "cyan",
    "cache_hit": "bold green",
    "fallback": "italic magenta",
}
_ORIGIN_NAMES: Final[dict[TokenOrigin, str]] = {
    "target": "target's own",
    "draft": "accepted draft",
    "cache_hit": "cache hit",
    "fallback": "fallback",
}
_LONG_NAMES: Final[dict[Racer, str]] = {
    "ar": "autoregressive",
    "sd": "speculative",
    "ssd": "speculative-speculative",
}
_FRAMES_PER_S: Final = 10
_REPLAY_FRAMES_PER_S: Final = 30
_MIN_PANE_WIDTH: Final = 24
_MIN_STACKED_PANE_HEIGHT: Final = 6
_HEADER_LINES: Final = 2
_FOOTER_LINES: Final = 2
_FINAL_LINES: Final = 20


def fits(console: Console, *, num_panes: int) -> bool:
    """Return whether the terminal can move its cursor and has room for the panes, side by side or stacked."""
    if not console.is_terminal or console.is_dumb_terminal:
        return False
    side_by_side = console.width >= num_panes * _MIN_PANE_WIDTH and console.height >= 12
    return side_by_side or _fits_stacked(console, num_panes)


def _fits_stacked(console: Console, num_panes: int) -> bool:
    room = console.height - _HEADER_LINES - _FOOTER_LINES
    return console.width >= _MIN_PANE_WIDTH and room >= num_panes * _MIN_STACKED_PANE_HEIGHT


class Pane:
    """One method's text, speed and progress; draws itself into whatever room it gets.

    Args:
        racer: The method.
        num_tokens_expected: Length of the progress bar.
    """

    def __init__(self, racer: Racer, *, num_tokens_expected: int) -> None:
        self.racer: Final[Racer] = racer
        self.num_tokens_expected = num_tokens_expected
        self.state = "waits for its turn"
        self.is_active = False
        self.text_width: int | None = None
        self._cores = ""
        self.clear()

    def clear(self) -> None:
        """Forget the text."""
        self._text = Text()
        self._times_s: list[float] = []
        self._wrapped: tuple[tuple[int, int], list[Text]] = ((0, 0), [])

    def add(self, token: RaceToken) -> None:
        """Append a token in the colour of its origin."""
        self._text.append(visible(token.text).expandtabs(4), style=ORIGIN_STYLES[token.origin])
        self._times_s.append(token.time_s)

    def set_cores(self, cores: int) -> None:
        """Say how many cores the method used."""
        self._cores = f" · {cores} core{'' if cores == 1 else 's'}"

    @property
    def num_tokens(self) -> int:
        """Tokens shown."""
        return len(self._times_s)

    @property
    def tokens_per_s(self) -> float:
        """Tokens after the first over the time they took; 0 before the second came."""
        seconds = self._times_s[-1] - self._times_s[0] if self._times_s else 0.0
        return (len(self._times_s) - 1) / seconds if seconds > 0 else 0.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(options.max_width - 4, 1)
        height = max((options.height or _MIN_STACKED_PANE_HEIGHT) - 3, 1)
        title = f"[bold]{NAMES[self.racer]}[/bold]{self._cores}"
        long_name = f"[bold]{NAMES[self.racer]}[/bold] {_LONG_NAMES[self.racer]}{self._cores}"
        if Text.from_markup(long_name).cell_len <= width - 2:
            title = long_name
        lines = self._lines(console, width=min(width, self.text_width or width))[-height:]
        text = Text("\n", no_wrap=True, overflow="crop").join([*lines, *[Text()] * (height - len(lines))])
        bar = ProgressBar(
            total=max(self.num_tokens_expected, 1),
            completed=self.num_tokens,
            width=width,
            complete_style="cyan",
            finished_style="green",
        )
        yield Panel(
            Group(text, bar),
            title=title,
            title_align="left",
            subtitle=Text(self.state, overflow="ellipsis", no_wrap=True),
            subtitle_align="right",
            border_style="bright_blue" if self.is_active else "bright_black",
            height=options.height,
        )

    def _lines(self, console: Console, *, width: int) -> list[Text]:
        """Wrap the text, unless nothing has changed since the last frame."""
        key = (width, self.num_tokens)
        if self._wrapped[0] != key:
            self._wrapped = (key, list(self._text.wrap(console, width)))
        return self._wrapped[1]


class RaceScreen(RaceObserver):
    """An observer that draws; a context manager that gives the terminal back as it was.

    Args:
        config: Of the race.
        console: The terminal.
    """

    def __init__(self, config: RaceConfig, *, console: Console) -> None:
        self._config = config
        self._console = console
        limit = config.sampling.max_tokens
        self._panes = {racer: Pane(racer, num_tokens_expected=limit or 1) for racer in config.racers}
        self._status = ""
        self._timed: dict[Racer, list[RaceRun]] = {racer: [] for racer in config.racers}
        self._next_frame_s = 0.0
        self._live = Live(console=console, screen=True, auto_refresh=False, get_renderable=self._frame)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def loading(self, racer: Racer) -> None:
        """Mark the method's pane as the active one."""
        for pane in self._panes.values():
            pane.is_active = pane.racer == racer
        self._status = "The methods run one after the other, so that none takes a core from another"
        self._show(racer, "loading")

    def warming_up(self, racer: Racer) -> None:
        """Say that what comes is live and untimed."""
        self._status = "Live, untimed: decoding pauses while a frame is drawn"
        self._show(racer, "prefill")

    def token(self, racer: Racer, token: RaceToken) -> None:
        """Show a token; a frame is drawn where the last one is long enough ago."""
        pane = self._panes[racer]
        pane.add(token)
        pane.state = f"{pane.tokens_per_s:.1f} tok/s"
        now_s = time.monotonic()
        if now_s >= self._next_frame_s:
            self._live.refresh()
            self._next_frame_s = now_s + 1 / _FRAMES_PER_S

    def timing(self, racer: Racer, prompt_index: int) -> None:
        """Say which prompt is being timed; the last frame before the run."""
        self._status = "Timed runs: nothing is drawn until each prompt is done"
        done = self._timed[racer]
        speed = f"{totals(done).tokens_per_s:.1f} tok/s" if done else "timing"
        self._show(racer, f"{speed} · {prompt_index + 1}/{len(self._config.prompts)}")

    def timed(self, run: RaceRun) -> None:
        """Show the method's speed so far."""
        self._timed[run.racer].append(run)
        so_far = totals(self._timed[run.racer])
        self._panes[run.racer].set_cores(so_far.cores)
        self._show(run.racer, f"{so_far.tokens_per_s:.1f} tok/s")

    def replay(self, result: RaceResult, *, slowdown: float = 1.0, prompt_index: int = 0) -> None:
        """Show the timed runs of one prompt side by side, each token when it came.

        Args:
            result: The race.
            slowdown: Seconds shown for one recorded second.
            prompt_index: Which prompt.
        """
        runs = _runs_of(result, prompt_index)
        pace = "in real time" if slowdown == 1 else f"{slowdown:g}x slower than it was"
        self._status = f"Replay {pace}: each ran alone, shown as if started together (Ctrl-C skips)"
        self._restart(runs)
        start_s = time.monotonic()
        end_s = max(run.tokens[-1].time_s for run in runs.values() if run.tokens)
        elapsed_s = 0.0
        while elapsed_s < end_s:
            elapsed_s = (time.monotonic() - start_s) / slowdown
            self._advance(runs, elapsed_s)
            self._live.refresh()
            time.sleep(1 / _REPLAY_FRAMES_PER_S)

    def print_final(self, result: RaceResult, *, prompt_index: int = 0) -> None:
        """Print the panes as the runs of one prompt ended, below what the terminal held before the race."""
        runs = _runs_of(result, prompt_index)
        self._restart(runs)
        self._advance(runs, float("inf"))
        self._status = "Each method ran alone; the timed runs were not drawn"
        height = min(_FINAL_LINES, self._console.height) if not self._is_stacked() else self._console.height
        self._console.print(self._frame(), height=height)

    def _restart(self, runs: Mapping[Racer, RaceRun]) -> None:
        for racer, run in runs.items():
            pane = self._panes[racer]
            pane.clear()
            pane.num_tokens_expected = len(run.tokens)
            pane.set_cores(run.metrics.cores)
            pane.is_active = True
            pane.state = "prefill"

    def _advance(self, runs: Mapping[Racer, RaceRun], elapsed_s: float) -> None:
        for racer, run in runs.items():
            pane = self._panes[racer]
            arrived: Sequence[RaceToken] = [t for t in run.tokens[pane.num_tokens :] if t.time_s <= elapsed_s]
            for token in arrived:
                pane.add(token)
            if pane.num_tokens:
                pane.state = f"{pane.tokens_per_s:.1f} tok/s"
            if pane.num_tokens == len(run.tokens) and run.tokens:
                pane.is_active = False
                pane.state += f" · {run.tokens[-1].time_s:.2f} s"

    def _show(self, racer: Racer, state: str) -> None:
        self._panes[racer].state = state
        self._live.refresh()

    def _is_stacked(self) -> bool:
        return self._console.width < len(self._panes) * _MIN_PANE_WIDTH

    def _frame(self) -> Layout:
        header, body, footer = Layout(size=_HEADER_LINES), Layout(), Layout(size=_FOOTER_LINES)
        header.update(Group(_line(self._headline()), _line(self._prompt_line())))
        panes = [Layout(pane) for pane in self._panes.values()]
        stacked = self._is_stacked()
        for pane in self._panes.values():  # where one pane is a column wider, lines still break alike in all
            pane.text_width = None if stacked else max(self._console.width // len(panes) - 4, 1)
        (body.split_column if stacked else body.split_row)(*panes)
        footer.update(Group(_line(_legend()), _line(Text(self._status, style="italic"))))
        frame = Layout()
        frame.split_column(header, body, footer)
        return frame

    def _headline(self) -> Text:
        config = self._config
        sampling = config.sampling
        how = "greedy" if sampling.is_greedy else f"temperature {sampling.temperature:g}, seed {sampling.seed}"
        num_prompts = len(config.prompts)
        return Text.assemble(
            ("Forerun race", "bold"),
            f"  target {config.engine.target} · draft {config.engine.draft} · {how} · "
            f"{num_prompts} prompt{'' if num_prompts == 1 else 's'}",
        )

    def _prompt_line(self) -> Text:
        prompt = self._config.prompts[0]
        return Text.assemble((f"{prompt.kind}: ", "bold"), visible(" ".join(prompt.text.split())))


def _runs_of(result: RaceResult, prompt_index: int) -> dict[Racer, RaceRun]:
    return {racer: runs[prompt_index] for racer, runs in result.runs.items()}


def _line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _legend() -> Text:
    parts: list[tuple[str, str] | str] = []
    for origin, style in ORIGIN_STYLES.items():
        parts += [("■ ", style), (_ORIGIN_NAMES[origin], style), "   "]
    return Text.assemble(*parts)
