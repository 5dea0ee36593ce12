"""
The log: one JSON line per event, or coloured lines on a terminal; events and their fields stand in ``events.py``.

Every module takes its logger once, ``log = structlog.get_logger()``, and says what happened in the past tense,
``log.info("lease.taken", group=…)``: fields, not prose. A call below the level costs a fraction of a microsecond, a
line about 20 µs: nothing per message above debug.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import orjson
import structlog

from daemon.redaction import Redaction

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, MutableMapping

LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class _Sink:
    """Where lines go, from which level on, and how they look. One per process, as there is one journal."""

    def __init__(self) -> None:
        self.threshold = LEVELS["info"]
        self.stream: BinaryIO = sys.stderr.buffer
        self.redaction = Redaction()
        self.console: structlog.dev.ConsoleRenderer | None = None

    def write(self, line: bytes) -> None:
        """One line. A reader that went away (a closed pipe, a full disk) stops no delivery."""
        try:
            self.stream.write(line + b"\n")
            self.stream.flush()
        except (OSError, ValueError):
            pass

    # The last step of structlog calls the logger's method of the event's level.
    debug = info = warning = error = write


class _Log(structlog.BoundLoggerBase):
    """What ``get_logger()`` returns: filters before anything else happens, by a level that a reload may change."""

    def debug(self, event: str, **fields: object) -> None:
        if _sink.threshold <= 10:
            self._say("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        if _sink.threshold <= 20:
            self._say("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        if _sink.threshold <= 30:
            self._say("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._say("error", event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """As :meth:`error`, with the exception being handled."""
        self._say("error", event, {"exc_info": True, **fields})

    critical = error

    def _say(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        self._proxy_to_logger(level, event, **fields)


_sink = _Sink()


def configure(
    level: str = "info",
    format: Literal["auto", "json", "console"] = "auto",  # noqa: A002 - the configuration's own word
    *,
    stream: BinaryIO | None = None,
    known: Collection[str] = (),
) -> None:
    """
    Begin to log at *level*, or go on in another way: may be called again, and every logger in use follows.

    *stream* is standard error when not given; ``auto`` is console on a terminal and JSON elsewhere. *known* are our
    own senders' addresses, which alone of all numbers are shown whole.
    """
    _sink.stream = stream or sys.stderr.buffer
    _sink.threshold = LEVELS[level]
    _sink.redaction = Redaction(frozenset(known))
    console = format == "console" or (format == "auto" and _sink.stream.isatty())
    _sink.console = structlog.dev.ConsoleRenderer(colors=_sink.stream.isatty()) if console else None
    structlog.configure(
        processors=[_redact, _render],
        wrapper_class=_Log,
        logger_factory=lambda *_: _sink,
        cache_logger_on_first_use=True,  # without it every call, filtered or not, builds its logger anew
    )
    _listen_to_libraries(_sink.threshold)


def _redact(_logger: object, level: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    redaction = _sink.redaction
    name = event.pop("event", "")
    trouble = _exception(event.pop("exc_info", None))
    said: dict[str, Any] = {
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "event": redaction.text(str(name)),
    }
    # A field may not pose as what we say ourselves.
    said.update((key if key not in said else f"{key}_", redaction.field(key, value)) for key, value in event.items())
    if trouble is not None:
        said["error"] = redaction.error(trouble)
        said["trace"] = redaction.trace(trouble)
    return said


def _exception(told: object) -> BaseException | None:
    match told:
        case BaseException():
            return told
        case (_, BaseException() as error, _):
            return error
        case None | False:
            return None
        case _:
            return sys.exc_info()[1]


def _render(logger: object, level: str, event: MutableMapping[str, Any]) -> bytes:
    if _sink.console is None:
        return orjson.dumps(event)
    trace = event.pop("trace", [])
    line = str(_sink.console(logger, level, event))
    return "\n".join([line, *_flat(trace)]).encode(errors="replace")


def _flat(trace: list[Any], indent: str = "    ") -> list[str]:
    lines: list[str] = []
    for step in trace:
        lines += _flat(step, indent + "    ") if isinstance(step, list) else [indent + step]
    return lines


class _Ear(logging.Handler):
    """Hears what libraries say by the standard module, and says it in our form."""

    def emit(self, record: logging.LogRecord) -> None:
        level = next((name for name, least in reversed(list(LEVELS.items())) if record.levelno >= least), "debug")
        fields: dict[str, object] = {"library": record.name, "said": record.getMessage()}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        getattr(_ears, level)("library.spoke", **fields)


_ears = structlog.get_logger()


def _listen_to_libraries(threshold: int) -> None:
    root = logging.getLogger()
    for heard in [one for one in root.handlers if isinstance(one, _Ear)]:
        root.removeHandler(heard)
    root.addHandler(_Ear())
    root.setLevel(max(threshold, logging.WARNING))  # what libraries say below that is about themselves
