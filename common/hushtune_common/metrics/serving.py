"""Where can a process's metrics be read? At an address of its own, of this machine unless another is named."""

import re
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EADDRINUSE

from prometheus_client import start_http_server

from hushtune_common.errors import AddressInUse, ConfigError
from hushtune_common.metrics.board import Board

_ADDRESS = re.compile(r"(?:(?P<host>[^\s:/@\[\]]+|\[[0-9a-fA-F:.]+\]):|:)?(?P<port>[0-9]{1,5})")
_LOOPBACK = "127.0.0.1"
_PORTS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Host and port to serve metrics at; port 0 takes a free one."""

    host: str
    port: int

    @staticmethod
    def parse(text: str) -> "Place":
        """Read ``HOST:PORT``, ``:PORT`` or ``PORT``, the latter two of this machine only; `ConfigError` for anything else."""
        found = _ADDRESS.fullmatch(text)
        if found is None or int(found["port"]) >= _PORTS:
            example = "such as 9100, 127.0.0.1:0 for a free port, or 0.0.0.0:9100 for others to reach"
            raise ConfigError("--metrics", f"use PORT or HOST:PORT, {example}, got {text!r}")
        return Place(host=(found["host"] or _LOOPBACK).strip("[]"), port=int(found["port"]))


@contextmanager
def served(board: Board, place: Place) -> Generator[str]:
    """Serve the ``board`` while the context lasts, and yield the address.

    Raises ``AddressInUse`` when the port is taken, and ``ConfigError`` when the address is not one of this machine.
    """
    try:
        server, thread = start_http_server(place.port, addr=place.host, registry=board.registry)
    except (socket.gaierror, UnicodeError):
        raise ConfigError("--metrics", f"{place.host} is no host that can be found; name an address of this machine") from None
    except OSError as error:
        raise _refused(place, error) from None
    try:
        yield f"{_shown(place.host)}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(1.0)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _refused(place: Place, error: OSError) -> AddressInUse | ConfigError:
    where = f"{_shown(place.host)}:{place.port}"
    if error.errno == EADDRINUSE:
        return AddressInUse(f"{where} is taken: choose another port for --metrics, or port 0 for a free one")
    return ConfigError("--metrics", f"cannot listen on {where}: {error.strerror}; use an address of this machine")
