"""The server's log: one JSON object a line on standard error, without prompts unless they are asked for."""

import json
import logging
import sys
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
    """Send the server's events, and warnings, to standard error as JSON lines; loggers are as before at the end.

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
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        for logger, (handlers, propagates, old_level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagates
            logger.setLevel(old_level)


def log_event(event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Write an event with its fields."""
    LOGGER.log(level, event, extra={"fields": fields})
