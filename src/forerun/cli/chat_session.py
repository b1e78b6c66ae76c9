"""A conversation: what was said, the slash commands, and one engine that can be exchanged for another method's."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, get_args

from forerun.cli.console import write_line
from forerun.cli.streaming import metrics_lines, reply_dict, write_stream
from forerun.core.config import unknown_name
from forerun.core.errors import RequestError
from forerun.engine.config import EngineConfig, Method
from forerun.engine.outputs import DecodeMetrics
from forerun.engine.sampling import SamplingParams
from forerun.recipes.text_engine import OpenEngine, TextEngine

HELP: Final = {
    "/stats": "metrics of the last reply",
    "/reset": "forget the conversation, keep the system prompt",
    "/system TEXT": "forget the conversation and set the system prompt; without TEXT: show it",
    "/method NAME": f"decode by another method ({', '.join(get_args(Method))}); without NAME: show it",
    "/help": "this list",
    "/quit": "leave (so does Ctrl-D)",
}


class ChatSession:
    """A conversation with one model.

    Args:
        config: Models and method.
        params: Sampling parameters of every reply.
        open_engine: Loads the models; called again for another method.
        system: System prompt; ``None``: whatever the chat template says.

    Raises:
        RequestError: The model has no chat template.
        ForerunError: The models can't be loaded.
    """

    def __init__(
        self, config: EngineConfig, params: SamplingParams, *, open_engine: OpenEngine, system: str | None = None
    ) -> None:
        self._config = config
        self._params = params
        self._open_engine = open_engine
        self._system = system
        self._messages: list[dict[str, object]] = []
        self.turns: list[dict[str, Any]] = []
        self._last_metrics: DecodeMetrics | None = None
        self._engine = self._opened(config)

    def close(self) -> None:
        """Free the models."""
        self._engine.close()

    def handle(self, line: str, *, is_stopped: Callable[[], bool]) -> bool:
        """Answer one line of the user's.

        Args:
            line: Words for the model, or a slash command. An empty line does nothing.
            is_stopped: Asked while a reply streams; ``True`` stops it, and what was said so far stays said.

        Returns:
            Whether to go on; ``False`` after ``/quit``.

        Raises:
            ForerunError: The line can't be served; the conversation is as it was before.
        """
        line = line.strip()
        if not line.startswith("/"):
            if line:
                self._reply(line, is_stopped)
            return True
        name, _, argument = line.partition(" ")
        actions: dict[str, Callable[[str], None]] = {
            "/stats": self._show_stats,
            "/reset": self._reset,
            "/system": self._set_system,
            "/method": self._set_method,
            "/help": self._show_help,
        }
        if name == "/quit":
            return False
        if name not in actions:
            raise unknown_name("command", name, [*actions, "/quit"])
        actions[name](argument.strip())
        return True

    def _opened(self, config: EngineConfig) -> TextEngine:
        engine = self._open_engine(config)
        if engine.tokenizer.chat_template is None:
            engine.close()
            raise RequestError(
                f"target={config.target}: this model has no chat template; name a model tuned for chat, or use "
                "`forerun generate`"
            )
        return engine

    def _reply(self, words: str, is_stopped: Callable[[], bool]) -> None:
        asked: dict[str, object] = {"role": "user", "content": words}
        system: list[dict[str, object]] = [] if self._system is None else [{"role": "system", "content": self._system}]
        prompt = self._engine.tokenizer.apply_chat_template([*system, *self._messages, asked])
        reply = write_stream(self._engine.stream([prompt], self._params), is_stopped=is_stopped)
        self._messages += [asked, {"role": "assistant", "content": reply.text}]
        self._last_metrics = self._engine.last_metrics
        self.turns.append({"user": words} | reply_dict(reply, self._last_metrics))

    def _show_stats(self, _: str) -> None:
        metrics = self._last_metrics
        for line in ["no reply yet"] if metrics is None else metrics_lines(metrics):
            write_line(line)

    def _reset(self, _: str) -> None:
        self._messages.clear()
        write_line("conversation forgotten")

    def _set_system(self, text: str) -> None:
        if not text:
            write_line("the model's own system prompt" if self._system is None else f"system prompt: {self._system}")
            return
        self._system = text
        self._messages.clear()
        write_line("system prompt set, conversation forgotten")

    def _set_method(self, name: str) -> None:
        if not name:
            write_line(f"method: {self._config.method}")
            return
        methods: dict[str, Method] = {method: method for method in get_args(Method)}
        if name not in methods:
            raise unknown_name("method", name, methods)
        config = replace(self._config, method=methods[name])
        engine = self._opened(config)
        self._engine.close()
        self._engine, self._config = engine, config
        write_line(f"method: {name}")

    def _show_help(self, _: str) -> None:
        for usage, meaning in HELP.items():
            write_line(f"{usage:<14} {meaning}")
