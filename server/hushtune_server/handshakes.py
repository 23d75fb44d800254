"""Who was turned away before a call could begin? gRPC refuses bad certificates by itself, and says so on standard error only.

A server's operator should find that in the log, in words. So while `told` lasts, what libraries write to standard error
(descriptor 2) goes through a pipe: lines about handshakes become events, everything else is passed on as it is. Python's own
``sys.stderr`` does not take that way, so no trace waits in a pipe when a process dies.
"""

import logging
import os
import re
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Final

from hushtune_common.clock import Clock
from hushtune_common.logs import log_event

_logger = logging.getLogger(__name__)
_STANDARD_ERROR: Final = 2
_CHUNK_BYTES: Final = 65_536
_LINE_BYTES_MAX: Final = 65_536
_QUIET_S: Final = 10.0
"""A caller that is refused tries again and again; so often at most its reason is told."""
_END_S: Final = 1.0
_FAILED = re.compile(rb"Handshake failed with error \S+: (?:error:)?(.*)")
_WORDS: Final[tuple[tuple[str, str, str], ...]] = (
    ("has expired", "its certificate has expired", "its operator: hushtune pki renew; compare the clocks"),
    ("not yet valid", "its certificate does not hold yet", "compare the clocks of the two machines and of the authority's"),
    ("issuer certificate", "its certificate is of another authority", "compare `hushtune pki show` of both kits"),
    ("self signed", "its certificate is of another authority", "compare `hushtune pki show` of both kits"),
    ("self-signed", "its certificate is of another authority", "compare `hushtune pki show` of both kits"),
    ("NOT_RETURN_A_CERTIFICATE", "it shows no certificate", "every process of a run needs a kit"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS", "another program calls this port"),
    ("HTTP_REQUEST", "it does not speak TLS", "another program calls this port"),
)


@contextmanager
def told(clock: Clock) -> Generator[None]:
    """Log ``handshake_refused`` for what gRPC says about handshakes while this lasts; for the edge of a process."""
    try:
        kept = os.dup(_STANDARD_ERROR)
    except OSError:  # a process without standard error has nothing to listen to
        yield
        return
    source, sink = os.pipe()
    before = sys.stderr
    with open(os.dup(kept), "w", buffering=1, errors="backslashreplace") as own:  # noqa: PTH123 - a descriptor is no path
        sys.stderr = own
        os.dup2(sink, _STANDARD_ERROR)
        os.close(sink)
        listening = threading.Thread(target=_listen, args=(source, kept, Telling(clock)), daemon=True)
        listening.start()
        try:
            yield
        finally:
            os.dup2(kept, _STANDARD_ERROR)  # closes the pipe's last end, unless a child process still has it
            sys.stderr = before
            listening.join(_END_S)
    if not listening.is_alive():
        os.close(kept)


class Telling:
    """Tells each reason at once the first time, then no more often than every ten seconds, with how often it came."""

    def __init__(self, clock: Clock) -> None:
        """Space events by ``clock``."""
        self._clock = clock
        self._next_s: dict[str, float] = {}
        self._passed_over: dict[str, int] = {}

    def tell(self, reason: str) -> None:
        """Log what the library's ``reason`` means, unless that was told a moment ago."""
        problem, remedy = next(((p, r) for mark, p, r in _WORDS if mark in reason), (reason[-200:], "see docs/OPERATIONS.md"))
        now = self._clock.monotonic()
        if now < self._next_s.get(problem, now):
            self._passed_over[problem] = self._passed_over.get(problem, 0) + 1
            return
        self._next_s[problem] = now + _QUIET_S
        times = 1 + self._passed_over.pop(problem, 0)
        log_event(
            _logger,
            "handshake_refused",
            level=logging.WARNING,
            problem=f"a connection was refused: {problem}",
            remedy=remedy,
            times=times,
        )


def _listen(source: int, kept: int, telling: Telling) -> None:
    rest = b""
    with suppress(OSError):
        while chunk := os.read(source, _CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                _pass_on(line + b"\n", kept, telling)
            if len(rest) > _LINE_BYTES_MAX:
                _pass_on(rest, kept, telling)
                rest = b""
        if rest:
            _pass_on(rest, kept, telling)
    os.close(source)


def _pass_on(line: bytes, kept: int, telling: Telling) -> None:
    found = _FAILED.search(line)
    if found is None:
        os.write(kept, line)
    else:
        telling.tell(found[1].decode(errors="replace").strip())
