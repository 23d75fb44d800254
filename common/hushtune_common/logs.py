"""One JSON object per event: past participles with fields, secrets masked by type."""

import json
import logging
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import IO, Any

from hushtune_common.clock import Clock
from hushtune_common.events.catalogue import objection
from hushtune_common.logfiles import LogFile
from hushtune_common.messages import Digest, UpdateKey

_FIELDS = "hushtune_fields"


class UncataloguedEvent(LookupError):
    """An event, or a field of one, that is not in `hushtune_common.events`; a defect of ours, told while we test."""


class _Checks:
    """What a call of `log_event` must satisfy; nothing unless somebody asks for it, since no line may cost a run."""

    objection: Callable[[str, Collection[str]], str] | None = None


class EventHandler(logging.Handler):
    """Hands every event on, in the process that logs it: what is counted and what is written are one thing."""

    def __init__(self, tell: Callable[[str, Mapping[str, object], logging.LogRecord], None]) -> None:
        """Have ``tell`` told the event, its fields and the record with its time and level; what it raises is lost, not raised."""
        super().__init__(level=logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record on; one that is no event of ours is passed over."""
        fields: Mapping[str, object] | None = getattr(record, _FIELDS, None)
        if fields is not None:
            with suppress(Exception):
                self._tell(record.getMessage(), fields, record)


def refuse_uncatalogued(refuse: bool) -> None:
    """From now on, have `log_event` raise `UncataloguedEvent` in this process, or stop that: a test's setting."""
    _Checks.objection = objection if refuse else None


def log_event(logger: logging.Logger, event: str, /, *, level: int = logging.INFO, **fields: object) -> None:
    """Log ``event`` (a past participle, such as ``update_sealed``) with fields whose names carry their units.

    Both are to be in `hushtune_common.events`.
    """
    _require_catalogued(event, fields)
    logger.log(level, event, extra={_FIELDS: fields})


def log_defect(logger: logging.Logger, event: str, error: BaseException, /, **fields: object) -> None:
    """Log ``event`` as an error of ours, with the trace of ``error``."""
    _require_catalogued(event, fields)
    logger.error(event, extra={_FIELDS: fields}, exc_info=error)


def _require_catalogued(event: str, fields: Collection[str]) -> None:
    if _Checks.objection is not None and (wrong := _Checks.objection(event, fields)):
        raise UncataloguedEvent(wrong)


class JsonFormatter(logging.Formatter):
    """Renders a record as one JSON line, with ``bound`` context in every line."""

    def __init__(self, *, clock: Clock, bound: Mapping[str, object]) -> None:
        """Take the ``clock`` for timestamps and the ``bound`` fields (role, run, name)."""
        super().__init__()
        self._clock = clock
        self._bound = dict(bound)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its newline."""
        body: dict[str, object] = {
            "time": self._clock.wall().isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **self._bound,
            **getattr(record, _FIELDS, {}),
        }
        if record.name and not record.name.startswith("hushtune"):
            body["logger"] = record.name
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)
        return json.dumps(body, default=_plain, ensure_ascii=False)


class ReadableFormatter(logging.Formatter):
    """Renders a record for a terminal: time, role, event, ``key=value`` pairs."""

    def __init__(self, *, clock: Clock, bound: Mapping[str, object]) -> None:
        """Take the ``clock`` and the ``bound`` context, of which the name is shown."""
        super().__init__()
        self._clock = clock
        self._who = str(bound.get("name", bound.get("role", "")))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: Mapping[str, object] = getattr(record, _FIELDS, {})
        pairs = " ".join(f"{k}={_shown(v)}" for k, v in fields.items())
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname} "
        line = f"{self._clock.wall():%H:%M:%S} {self._who:<12} {mark}{record.getMessage()} {pairs}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(
    *,
    clock: Clock,
    stream: IO[str] | None = None,
    json_lines: bool | None = None,
    level: str = "info",
    folder: Path | None = None,
    **bound: object,
) -> None:
    """Send records of at least ``level`` to ``stream`` (standard output), JSON unless it is a terminal, and all to ``folder``.

    There they are JSON lines in a file of bounded size, called after the bound ``name``. Called by composition roots only;
    `ConfigError` where the folder cannot be written, after which the stream is in use nevertheless.
    """
    target = sys.stdout if stream is None else stream
    as_json = not target.isatty() if json_lines is None else json_lines
    handler = logging.StreamHandler(target)
    handler.setFormatter((JsonFormatter if as_json else ReadableFormatter)(clock=clock, bound=bound))
    handler.setLevel(level.upper())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    if folder is not None:
        kept = LogFile(folder / f"{Path(str(bound['name'])).name}.jsonl")
        kept.setFormatter(JsonFormatter(clock=clock, bound=bound))
        root.addHandler(kept)


def _plain(value: Any) -> object:
    match value:
        case Digest():
            return value.hex
        case UpdateKey():
            return value.text
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case Enum():
            return value.value
        case _ if is_dataclass(value) and not isinstance(value, type):
            return asdict(value)
        case _ if hasattr(value, "item"):
            return value.item()
        case _:
            return repr(value)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, default=_plain, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."
