"""Which certificate does a running server show? The one in its kit's folder, renewed or not."""

import logging
from pathlib import Path

import grpc

from hushtune_common.clock import Clock
from hushtune_common.errors import ConfigError
from hushtune_common.logs import log_event
from hushtune_common.wire.kit import Kit, mark_of, remaining_s, require_valid

_logger = logging.getLogger(__name__)


class Renewals:
    """Hands gRPC the kit's certificate, and the next one when ``tls.crt`` has changed.

    Laws: another identity or authority is never taken; what cannot be used changes nothing but the log. gRPC asks at each
    handshake, from a thread of its own.
    """

    def __init__(self, kit: Kit, *, clock: Clock) -> None:
        """Begin with ``kit``."""
        self._kit = kit
        self._clock = clock
        self._path: Path = kit.directory / "tls.crt"
        self._seen = mark_of(self._path)

    @property
    def remaining_s(self) -> float:
        """Seconds until the certificate in force ends."""
        return remaining_s(self._kit, clock=self._clock)

    def certificates(self) -> grpc.ServerCertificateConfiguration:
        """Return the certificate in force, as gRPC wants it."""
        return grpc.ssl_server_certificate_configuration([(self._kit.key, self._kit.certificate)], self._kit.ca)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the certificate to change to, or ``None`` to stay with the one in force."""
        mark = mark_of(self._path)
        if mark == self._seen or mark is None:
            return None
        self._seen = mark
        try:
            self._kit = self._next()
        except ConfigError as error:
            log_event(_logger, "renewal_refused", level=logging.ERROR, problem=str(error))
            return None
        log_event(_logger, "certificate_renewed", valid_until=f"{self._kit.not_after:%Y-%m-%d %H:%M} UTC")
        return self.certificates()

    def _next(self) -> Kit:
        found = Kit.load(self._kit.directory)
        require_valid(found, clock=self._clock)
        if (found.caller, found.ca) != (self._kit.caller, self._kit.ca):
            raise ConfigError(
                str(self._kit.directory),
                f"now holds a kit of {found.caller.uri} or of another authority, this process is {self._kit.caller.uri}; put its "
                "own kit back, or restart it",
            )
        return found
