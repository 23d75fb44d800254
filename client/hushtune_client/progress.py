"""How far is this client? A phase and a counter for the beats, bytes of a transfer for the log."""

import logging
from typing import Final

from hushtune_common.clock import Clock
from hushtune_common.logs import log_event

_logger = logging.getLogger(__name__)
_TRANSFER_LOG_EVERY_S: Final = 0.5


class Status:
    """What the beat says: the phase, and a counter that only rises."""

    def __init__(self) -> None:
        """Start in the phase ``starting``."""
        self.phase = "starting"
        self.progress = 0

    def enter(self, phase: str) -> None:
        """Change the phase and log it."""
        if phase != self.phase:
            self.phase = phase
            log_event(_logger, "phase_changed", phase=phase)

    def advance(self, amount: int) -> None:
        """Count work done: optimiser steps, bytes."""
        self.progress += max(0, amount)


class TransferLog:
    """Counts and logs the bytes of one transfer, at most twice per second."""

    def __init__(self, kind: str, *, clock: Clock, status: Status) -> None:
        """``kind`` is emulator or frame."""
        self._kind = kind
        self._clock = clock
        self._status = status
        self._started = self._logged = clock.monotonic()
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        """Note ``done`` of ``total`` bytes."""
        self._status.advance(done - self._done)
        self._done = max(done, self._done)
        if self._clock.monotonic() - self._logged >= _TRANSFER_LOG_EVERY_S:
            self._logged = self._clock.monotonic()
            log_event(_logger, "transfer_progressed", kind=self._kind, bytes_done=done, bytes_total=total)

    def finish(self, total: int) -> None:
        """Log the end of the transfer."""
        seconds = round(self._clock.monotonic() - self._started, 3)
        log_event(_logger, "transfer_finished", kind=self._kind, bytes_total=total, seconds=seconds)
