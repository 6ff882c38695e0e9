"""Logs of both programs: one line per record for people, or one JSON object per line for machines.

What devices say ends up in logs. Whatever is in it, it stays within its line: everything that is not printable
(line ends, terminal escapes, marks that turn the direction of text) is written as its escape.

A JSON line has `ts` (UTC, ISO 8601), `level`, `logger`, `message`, where they are known `device`, `run` and `round`,
in the coordinator `event` (coordinator.server lists them), and `exception` where there is one.
"""

import json
import logging
import logging.handlers
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from shared.errors import ConfigError, TalariaError

LogFormat = Literal["text", "json"]

FILE_BYTES = 10 << 20
"""Size at which a log file is put aside."""
FILES_KEPT = 5
"""Of those that were put aside."""
FIELDS = ("device", "run", "round", "event")
"""What a record may carry beside its text, as `extra`."""

log = logging.getLogger("talaria")


def printable(text: str) -> str:
    r"""The text with everything escaped that could end a line, or change how others look: "a\nb" becomes "a\\nb"."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


@contextmanager
def logged(form: LogFormat = "text", file: Path | None = None, *, quiet: bool = False, **known: str) -> Iterator[None]:
    """From here on, everything that is logged, warnings of libraries included, goes to stderr, or into `file`, whose
    size is bounded. What ends the block is logged too, unless the program tells it on stderr in the same way.

    known  fields of every JSON line, for example device="kitchen"
    quiet  warnings only

    ConfigError where the file cannot be written.
    """
    handler = logging.StreamHandler(sys.stderr) if file is None else _file(file)
    handler.setFormatter(_JsonLines(known) if form == "json" else _TextLines())
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    try:
        yield
    except Exception as error:
        if file is not None or form == "json":
            log.critical("%s", str(error) or repr(error), exc_info=not isinstance(error, TalariaError))
        raise


def _file(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return logging.handlers.RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILES_KEPT, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--log-file {str(path)!r} cannot be written: {error}") from error


class _TextLines(logging.Formatter):
    """`2026-01-01T12:00:00.123Z WARNING edge_agent.agent: text`; the lines of a traceback are indented."""

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_time(record)} {record.levelname:<7} {record.name}: {printable(record.getMessage())}"
        trace = [f"    {printable(line)}" for line in self._trace(record).splitlines()]
        return "\n".join([head, *trace])

    def _trace(self, record: logging.LogRecord) -> str:
        return self.formatException(record.exc_info) if record.exc_info else ""


class _JsonLines(logging.Formatter):
    def __init__(self, known: dict[str, str]) -> None:
        super().__init__()
        self._known = known

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "ts": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._known,
            **{name: getattr(record, name) for name in FIELDS if hasattr(record, name)},
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
