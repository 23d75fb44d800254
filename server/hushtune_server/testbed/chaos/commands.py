"""``hushtune testbed chaos``: ten faults, done to real processes of a small run; ``disturb``: a bad network for any run."""

import asyncio
import json
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console

from hushtune_common.clock import SystemClock
from hushtune_common.errors import ConfigError

_OUT = Path("runs/chaos")
_STANDARD_ERROR = 2


def register(testbed: App) -> None:
    """Add ``chaos`` and ``disturb`` to the ``testbed`` commands."""
    testbed.command(chaos)
    testbed.command(disturb)


def chaos(
    *,
    only: Annotated[str, Parameter(help="Only these faults, separated by commas, for example 1,3.")] = "",
    json_: Annotated[bool, Parameter(name="--json", help="Print the result as JSON instead of a table.")] = False,
    out: Annotated[Path, Parameter(help="Folder for chaos.json, chaos.md, and the logs of every process.")] = _OUT,
    document: Annotated[Path | None, Parameter(help="Also write the table with an introduction to this page.")] = None,
) -> int:
    """Do ten faults to real processes of a small run, and check what each may cost.

    1 cuts, 2 lost replies, 3 killed clients, 4 a coordinator killed in each state, 5 a changed scenario, 6 silent connections
    and processes, 7 clocks that are off, 8 damaged bytes, 9 slow and stalled clients, 10 bad certificates.

    Each process is reached through a proxy that delays, slows, cuts, freezes or damages connections. Timeouts are shortened
    (idle_s is 8 s, or 20 s where processes are killed), so that the ten take a few minutes. Ends with code 0 when every fault
    passed, 1 when one did not.

    Example: hushtune testbed chaos --only 1,3
    """
    from hushtune_server.testbed.chaos.small import TIMING
    from hushtune_server.testbed.chaos.suite import FAULTS, run_suite, to_json
    from hushtune_server.testbed.chaos.table import to_markdown, to_page
    from hushtune_server.testbed.launch import versions

    console, clock = Console(stderr=json_), SystemClock()
    began_s, before = clock.monotonic(), os.getloadavg()[0]

    def tell(line: str) -> None:
        console.print(f"{clock.monotonic() - began_s:5.0f} s  {line}", markup=False, highlight=False, soft_wrap=True)

    chosen = _numbers(only) if only else FAULTS
    with _libraries_to(_made(out) / "chaos.stderr"):
        findings = asyncio.run(run_suite(out, only=chosen, clock=clock, tell=tell))
    load, wall_s = (before, os.getloadavg()[0]), clock.monotonic() - began_s
    result = to_json(findings, timing=TIMING, versions=versions(), wall_s=wall_s, load=load)
    (out / "chaos.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "chaos.md").write_text(to_markdown(result), encoding="utf-8")
    if document is not None:
        document.write_text(to_page(result), encoding="utf-8")
    if json_:
        sys.stdout.write(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    else:
        console.print("\n" + to_markdown(result), markup=False, highlight=False, soft_wrap=True)
        console.print(f"{out / 'chaos.json'}, {out / 'chaos.md'}; the logs of each run lie beside them")
    return 0 if result["passed"] else 1


def disturb(
    *,
    between: Annotated[
        list[str],
        Parameter(help="HOST:PORT=SERVER:PORT: where callers reach a server, and where it is; repeatable."),
    ],
    delay_ms: Annotated[float, Parameter(help="Added to the way there, and to the way back.")] = 0.0,
    jitter_ms: Annotated[float, Parameter(help="At most so much more, drawn anew for every piece.")] = 0.0,
    rate_kbps: Annotated[float, Parameter(help="kbit/s of each connection each way, up to about 10000; 0 for no limit.")] = 0.0,
    cut_every_s: Annotated[
        float, Parameter(help="Cut all connections to a server after half to one and a half times this; 0 for never.")
    ] = 0.0,
    seed: Annotated[int, Parameter(help="What jitter and cuts are drawn from.")] = 1,
    log_level: Annotated[
        Literal["info", "warning", "error"], Parameter(help="What goes to standard output: lines at least as bad as this.")
    ] = "info",
    log_folder: Annotated[
        Path | None, Parameter(help="Also keep all lines here, as JSON in proxy.jsonl; at most 16 MiB.")
    ] = None,
) -> int:
    """Stand between callers and servers, and make the network bad: slow, narrow, and cut now and then; Ctrl-C ends it.

    It sees bytes under TLS and changes none. What it does is logged, so that `hushtune logs` shows it among the run's events.
    docker-compose starts it with --profile chaos.

    Example: hushtune testbed disturb --between 127.0.0.1:7102=127.0.0.1:7002 --delay-ms 40 --cut-every-s 20
    """
    from hushtune_common import logs
    from hushtune_common.seeding import SeedTree
    from hushtune_common.wire import lifetime
    from hushtune_server.testbed.chaos.between import Between, Faults, Link

    faults = Faults(delay_s=delay_ms / 1e3, jitter_s=jitter_ms / 1e3, rate_bps=rate_kbps * 1e3, cut_every_s=cut_every_s)
    links = [Link.of(text) for text in between]
    clock = SystemClock()
    logs.configure(clock=clock, level=log_level, folder=log_folder, role="proxy", name="proxy")

    async def stand() -> None:
        standing = Between(links, faults, clock=clock, seeds=SeedTree(seed).child("disturb"))
        with lifetime.stop_signal() as stop:
            await standing.open()
            await lifetime.run_until(stop, standing.run())

    asyncio.run(stand())
    return 0


@contextmanager
def _libraries_to(file: Path) -> Generator[None]:
    """Let what libraries print about broken connections go to ``file``; what this process prints stays where it was."""
    kept, before = os.dup(_STANDARD_ERROR), sys.stderr
    try:
        with file.open("ab") as target, open(os.dup(kept), "w", buffering=1) as sys.stderr:  # noqa: PTH123 - no path
            os.dup2(target.fileno(), _STANDARD_ERROR)
            yield
    finally:
        sys.stderr = before
        os.dup2(kept, _STANDARD_ERROR)
        os.close(kept)


def _numbers(only: str) -> list[int]:
    parts = [part.strip() for part in only.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError("--only", f"numbers of faults separated by commas, such as 1,3, got {only!r}")
    return [int(part) for part in parts]


def _made(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("--out", f"cannot make {out} ({error.strerror}); give a folder that can be written") from error
    return out
