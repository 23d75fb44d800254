"""Where does the page listen, and when does it end? A web server of its own, on this machine unless told otherwise."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn

from hushtune_common.clock import Clock
from hushtune_common.errors import AddressInUse, ConfigError
from hushtune_server.testbed import rundir
from hushtune_server.testbed.dashboard.watching import Find, Place, Watch
from hushtune_server.testbed.dashboard.web import application
from hushtune_server.testbed.logbook import lines

DEFAULT: Final = "127.0.0.1:8080"
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_VIEWERS_MAX: Final = 64
_STOP_S: Final = 2
_LAST_WORD_S: Final = 1.5
"""How long a page beside a run goes on after it, so that its end reaches those who look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen; port 0 is any that is free. ``names`` are those that a browser may call it by, if they were given."""

    host: str
    port: int
    names: frozenset[str] = frozenset()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> frozenset[str] | None:
        """The names that a browser may call it by: any where other machines reach it, whose names for it are not known."""
        if self.names:
            return self.names
        return _LOOPBACK_NAMES | {_bracketed(self.host)} if self.is_loopback else None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def address_of(text: str, *, names: str = "") -> Address:
    """Return the address that ``--listen`` means: HOST:PORT, or a port of this machine; ``names`` are separated by commas."""
    host, colon, port = text.strip().rpartition(":")
    host = host.strip("[]") if colon else "127.0.0.1"
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError("--listen", f"expected HOST:PORT such as {DEFAULT}, or a port, got {text!r}")
    called = frozenset(name.strip().lower() for name in names.split(",") if name.strip())
    return Address(host=host, port=int(port), names=called)


def finder(runs: Path, run: str) -> Find:
    """Return what finds the logs: a run by its id or beginning, a folder anywhere, or always the newest run."""

    def find() -> Place | None:
        try:
            return lines.find(runs, run)
        except ConfigError:
            if run == "latest" or Path(run).is_dir():
                return None  # none yet: it will come
            raise

    return find


def bound(address: Address) -> socket.socket:
    """Return a socket that listens at ``address``; `AddressInUse` or `ConfigError` where that cannot be."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address.host, address.port))
        listening.listen(_VIEWERS_MAX)
    except OSError as error:
        listening.close()
        where, again = f"{_bracketed(address.host)}:{address.port}", "--listen with port 0 takes any that is free"
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"{where} is taken; {again}") from error
        raise ConfigError("--listen", f"cannot listen at {where} ({error.strerror}); {again}") from error
    return listening


def url_of(listening: socket.socket) -> str:
    """Return the address to type into a browser of this machine."""
    host, port = listening.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(host), str(host))  # noqa: S104 - compared, not listened at
    return f"http://{_bracketed(reachable)}:{port}/"


class Server(uvicorn.Server):
    """A web server that ends its streams when it is to stop, instead of waiting for viewers to go."""

    def __init__(self, config: uvicorn.Config, *, watch: Watch) -> None:
        """Make the server; it runs when it is told to ``serve``."""
        super().__init__(config)
        self._watch = watch

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop following, so that every stream ends, then stop."""
        self._watch.stop()
        await super().shutdown(sockets)


class Beside(Server):
    """A web server that leaves signals alone, so that it can stand beside something else."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave them to the caller."""
        yield


def server(watch: Watch, address: Address, *, own_signals: bool) -> uvicorn.Server:
    """Return a web server about ``watch``, which is not running yet; it takes a socket in ``serve(sockets=[...])``."""
    config = uvicorn.Config(
        application(watch, hosts=address.hosts),
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=_VIEWERS_MAX,
        timeout_graceful_shutdown=_STOP_S,
        lifespan="on",
    )
    return Server(config, watch=watch) if own_signals else Beside(config, watch=watch)


def watch_of(runs: Path, run: str, *, scenario: Path | None, clock: Clock) -> Watch:
    """Return what follows ``run``; `ConfigError` when it names something that is not there and will not come."""
    find = finder(runs, run)
    find()
    if scenario is not None and not scenario.is_file():
        raise ConfigError("--scenario", f"no file {scenario}; give the TOML file that the run was started with")
    return Watch(find=find, clock=clock, scenario_path=scenario)


@contextlib.asynccontextmanager
async def beside(runs: Path, address: Address, *, clock: Clock) -> AsyncGenerator[str]:
    """Serve, in the loop that runs already, the run that is going to begin in ``runs``; yield the address to open."""
    known = {run.id for run in rundir.all_runs(runs)}
    newest = finder(runs, "latest")

    def find() -> Place | None:
        place = newest()
        return None if place is None or place[1] is None or place[1].id in known else place

    watch = Watch(find=find, clock=clock)
    with bound(address) as listening:
        web = server(watch, address, own_signals=False)
        serving = asyncio.create_task(web.serve(sockets=[listening]))
        try:
            yield url_of(listening)
            await clock.sleep(_LAST_WORD_S)
        finally:
            web.should_exit = True
            await serving
