"""Structured logs on standard error, for people or log collectors. Modules use `structlog.get_logger()`."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import structlog
from structlog.stdlib import ProcessorFormatter

from stream_learner.text import printable, printable_lines

REPEAT_EVERY_S = 60.0
MULTILINE = ("exception", "stack")


def configure(
    level: Literal["debug", "info", "warning", "error"],
    format: Literal["console", "json"],  # noqa: A002 (the setting's name)
    rank: int | None = None,
) -> None:
    """Set one level, format and handler for structlog, the standard library's loggers and Python's warnings.

    If `rank` is given, it is a field of every line.
    """
    if format == "json":
        renderer = structlog.processors.JSONRenderer(serializer=_json)
    else:
        # By default structlog formats tracebacks with Rich, which shows local variables. These may hold secrets.
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
    renderers = [structlog.processors.format_exc_info, _make_printable, renderer]
    shared = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if rank is not None:
        shared.append(lambda _, __, event: {**event, "rank": rank})
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Repeats())
    handler.setFormatter(
        ProcessorFormatter(foreign_pre_chain=shared, processors=[ProcessorFormatter.remove_processors_meta, *renderers])
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # Not DEBUG, because kafka-python then logs SASL passwords (the admin client's settings, SaslAuthenticate requests).
    logging.getLogger("kafka").setLevel(logging.INFO if level == "debug" else max(logging.WARNING, root.level))
    # This logger warns when its thread waits a tenth of a second to run, which is usual during training.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
    logging.captureWarnings(True)


def _make_printable(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {name: _lines(value) if name in MULTILINE else _printable(value) for name, value in event.items()}


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_printable(name): _printable(item) for name, item in value.items()}
    return [*map(_printable, value)] if isinstance(value, list | tuple) else value


def _lines(text: Any) -> Any:
    # Indented, so that no line of an exception's message looks like a line of the log.
    return "\n".join(f"  {line}" for line in printable_lines(text).split("\n")) if isinstance(text, str) else text


class _Repeats(logging.Filter):
    """Filter that passes each message of kafka-python at most once a minute.

    While the brokers are unavailable, kafka-python logs the same message many times a second.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock = clock
        self._silent_until: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("kafka"):
            return True
        said, now = (record.name, str(record.msg)), self._clock()
        if now < self._silent_until.get(said, 0.0):
            return False
        # Messages may contain text that changes each time, so remove expired entries to keep this dictionary small.
        self._silent_until = {s: until for s, until in self._silent_until.items() if until > now}
        self._silent_until[said] = now + REPEAT_EVERY_S
        return True


def _json(event: dict[str, Any], default: Callable[[Any], Any]) -> str:
    # The standard library would write NaN, which is not JSON.
    return msgspec.json.encode(event, enc_hook=default).decode()
