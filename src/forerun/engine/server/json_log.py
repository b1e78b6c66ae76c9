"""The server's log: one JSON object a line on standard error, without prompts unless they are asked for."""

import json
import logging
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

LOGGER: Final = logging.getLogger("forerun.server")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        content: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        content |= getattr(record, "fields", {})
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False, default=str)


@contextmanager
def log_to_stderr(level: int = logging.INFO) -> Generator[None]:
    """Send the server's events, warnings, and errors that end threads, to standard error as JSON lines.

    At the end loggers are as before.

    Args:
        level: Least important events.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    least = {LOGGER.name: level, "uvicorn": logging.WARNING, "py.warnings": logging.WARNING}
    loggers = [logging.getLogger(name) for name in least]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least[logger.name])
    before_hook, threading.excepthook = threading.excepthook, _log_end_of_thread
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        threading.excepthook = before_hook
        for logger, (handlers, propagates, old_level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagates
            logger.setLevel(old_level)


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Write which error ended a thread, such as the engine's."""
    name = "" if ended.thread is None else ended.thread.name
    error = None if ended.exc_value is None else (ended.exc_type, ended.exc_value, ended.exc_traceback)
    LOGGER.critical("a thread has ended by an error", exc_info=error, extra={"fields": {"thread": name}})


def log_event(event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Write an event with its fields."""
    LOGGER.log(level, event, extra={"fields": fields})
