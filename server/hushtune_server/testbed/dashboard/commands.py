"""``hushtune dashboard``: a run on a page that follows it."""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

from cyclopts import App, Parameter

from hushtune_common.clock import SystemClock
from hushtune_server.words import extra

_DEFAULT = "127.0.0.1:8080"
_T = TypeVar("_T")


def register(app: App) -> None:
    """Add ``hushtune dashboard``."""
    app.command(dashboard)


def dashboard(
    *,
    run: Annotated[
        str, Parameter(help="A run's id, a unique beginning of it, a run directory, or a folder with logs of several machines.")
    ] = "latest",
    listen: Annotated[str, Parameter(help="HOST:PORT; port 0 takes any that is free.")] = _DEFAULT,
    names: Annotated[
        str,
        Parameter(help="What browsers may call it, separated by commas; this machine's own names on loopback, else any."),
    ] = "",
    scenario: Annotated[Path | None, Parameter(help="The scenario of gathered logs: who stands where on the map.")] = None,
    runs: Annotated[Path, Parameter(help="Folder that holds the run directories.")] = Path("runs"),
) -> int:
    """Show a run on a web page that follows it while it goes on; Ctrl-C ends it.

    The page shows who stands where and hears what, every client's training, secrecy gate and upload block by block, what each got
    beside an equal share, the same bytes as the owner and the eavesdropper have them, energy and time, and the events in words.
    It only reads. Without --run it goes on to the newest run whenever one begins, also if there is none yet.

    It listens on this machine only, unless you name another address; then everyone who reaches that address reads along. Where
    only some are to reach it, as behind a port that a container publishes on loopback, --names keeps foreign pages from calling
    it by names of their own.

    Example: hushtune dashboard

    Example: hushtune dashboard --run small-2026 --listen 127.0.0.1:0

    Example: hushtune dashboard --run gathered-logs/ --scenario scenarios/demo.toml
    """
    with extra("dashboard"):
        from hushtune_server.testbed.dashboard import serving

    address = serving.address_of(listen, names=names)
    watch = serving.watch_of(runs, run, scenario=scenario, clock=SystemClock())
    with serving.bound(address) as listening:
        if address.hosts is None:
            print("warning: everyone who reaches this address can read along; there is no password", file=sys.stderr, flush=True)
        print(f"dashboard: {serving.url_of(listening)}   (Ctrl-C ends it)", flush=True)
        web = serving.server(watch, address, own_signals=True)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(web.serve(sockets=[listening]))
    return 0


async def beside(work: Callable[[], Awaitable[_T]], *, runs: Path, listen: str, tell: Callable[[str], None]) -> _T:
    """Do ``work``, a run that begins in ``runs``, with a page about it beside; ``tell`` says where."""
    with extra("dashboard"):
        from hushtune_server.testbed.dashboard import serving

    address = serving.address_of(listen)
    async with serving.beside(runs, address, clock=SystemClock()) as url:
        tell(f"dashboard: {url}")
        return await work()
