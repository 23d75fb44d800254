"""``hushtune logs``: the events of all processes of a run in order of time, and what each of them means."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import App, Parameter
from rich.console import Console

from hushtune_common.clock import Clock, SystemClock
from hushtune_common.errors import ConfigError
from hushtune_common.events.catalogue import EVENTS
from hushtune_server.testbed import rundir
from hushtune_server.testbed.logbook import choosing, document, lines, pretty
from hushtune_server.testbed.logbook.choosing import Choice
from hushtune_server.testbed.logbook.lines import Line, Logbook
from hushtune_server.words import write_page

_POLL_S: Final = 0.3
_RUNS: Final = Path("runs")
_Show = Callable[[Line], None]


def register(app: App, *, runs: App) -> None:
    """Add ``hushtune logs``, and the same under ``hushtune runs logs``."""
    logs = App(name="logs", help="Read the events of all processes of a run, and look up what they mean.")
    logs.default(show)
    logs.command(catalogue)
    app.command(logs)
    runs.command(show, name="logs")


def show(
    run: str = "latest",
    *,
    role: Annotated[
        list[str] | None,
        Parameter(alias="--process", help="Only this role or process: owner, client, c1 … (repeatable)."),
    ] = None,
    client: Annotated[list[str] | None, Parameter(help="Only lines of, or about, this client (repeatable).")] = None,
    round_: Annotated[list[int] | None, Parameter(name="--round", help="Only lines about this round (repeatable).")] = None,
    event: Annotated[list[str] | None, Parameter(help="Only this event, or a pattern such as 'update_*' (repeatable).")] = None,
    level: Annotated[Literal["info", "warning", "error"], Parameter(help="Only lines at least as bad as this.")] = "info",
    since: Annotated[
        str | None, Parameter(help="5m (before the end), +30s (after the start), 09:41:30 (UTC), or a date with time.")
    ] = None,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), help="Go on with what is being written.")] = False,
    all_: Annotated[bool, Parameter(name="--all", help="Also lines that only say that it goes on.")] = False,
    explain: Annotated[
        bool,
        Parameter(help="Say what each event means, once; with an event's name for RUN, only what that one means."),
    ] = False,
    headlines: Annotated[
        bool, Parameter(help="The tale of the run in words: what a person wants to know first, and all trouble.")
    ] = False,
    json_: Annotated[bool, Parameter(name="--json", help="The JSON lines as they are, all of them.")] = False,
    runs: Annotated[Path, Parameter(help="Folder that holds the run directories.")] = _RUNS,
) -> int:
    """Print the events of RUN from all processes, in order of time.

    RUN is a run's id, a unique beginning of it, `latest`, or a folder with logs gathered from several machines.

    Example: hushtune logs latest --client c1 --event 'update_*'

    Example: hushtune logs latest --follow --level warning

    Example: hushtune logs latest --follow --headlines

    Example: hushtune logs --explain reception_attacked
    """
    if explain and run in EVENTS and not (runs / run).exists():
        print(document.explanation(run))
        return 0
    if headlines and (json_ or explain):
        raise ConfigError("--headlines", "tells in words; leave out --json and --explain")
    folder, directory = lines.find(runs, run)
    book = Logbook(folder)
    found = list(book.fresh(ended=not follow))
    choice = _choice(found, role=role, client=client, rounds=round_, event=event, level=level, since=since)
    if not follow:  # what has not happened yet is no mistake
        choosing.require_known(choice, found)
    printer = _printer(book, explain=explain, as_json=json_, headlines=headlines)
    quiet = frozenset[str]() if all_ or json_ or event else choosing.PROGRESS
    hidden = _print(found, choice, printer, quiet=quiet)
    if follow:
        hidden += _follow(book, directory, lambda fresh: _print(fresh, choice, printer, quiet=quiet), clock=SystemClock())
    _tell(book, hidden=hidden)
    return 0


def catalogue(
    *,
    document_: Annotated[Path | None, Parameter(name="--document", help="Write the page about all events to this file.")] = None,
    json_: Annotated[bool, Parameter(name="--json", help="The catalogue as JSON.")] = False,
) -> int:
    """List every event that a process may log, with the meaning and unit of each field.

    Example: hushtune logs catalogue --document docs/EVENTS.md
    """
    if document_ is not None:
        write_page(document_, document.document(), holds=f"{len(EVENTS)} events")
    elif json_:
        sys.stdout.write(json.dumps(document.as_json(), indent=2, ensure_ascii=False) + "\n")
    else:
        for name in EVENTS:
            print(document.explanation(name))
    return 0


def _choice(
    found: Sequence[Line],
    *,
    role: Sequence[str] | None,
    client: Sequence[str] | None,
    rounds: Sequence[int] | None,
    event: Sequence[str] | None,
    level: str,
    since: str | None,
) -> Choice:
    begin, end = (found[0].moment, found[-1].moment) if found else (0.0, 0.0)
    return Choice(
        roles=tuple(role or ()),
        clients=tuple(client or ()),
        rounds=tuple(rounds or ()),
        events=tuple(event or ()),
        level=level,
        since=None if since is None else choosing.since(since, first=begin, last=end),
    )


def _printer(book: Logbook, *, explain: bool, as_json: bool, headlines: bool) -> _Show:
    if as_json:
        return lambda line: print(json.dumps({"process": line.process, **line.record}, ensure_ascii=False), flush=True)
    console = Console(highlight=False, soft_wrap=True)
    width = max((len(name) for name in book.processes()), default=12)
    room, told = min(max(width, 12), 24), set[str]()

    def show_headline(line: Line) -> None:
        words = pretty.told(line, width=room)
        if words is not None:
            console.print(words)

    def show_line(line: Line) -> None:
        known = not explain or line.event in told
        told.add(line.event)
        console.print(pretty.render(line, width=room) if known else pretty.explained(line, width=room))

    return show_headline if headlines else show_line


def _print(found: Sequence[Line], choice: Choice, show_line: _Show, *, quiet: frozenset[str]) -> int:
    """Print the chosen lines; return how many were left out because they only say that it goes on."""
    hidden = 0
    for line in found:
        if choice.takes(line):
            if line.event in quiet:
                hidden += 1
            else:
                show_line(line)
    return hidden


def _follow(
    book: Logbook, directory: rundir.RunDirectory | None, print_fresh: Callable[[Sequence[Line]], int], *, clock: Clock
) -> int:
    """Print what comes until the run is over, or, for a folder that is no run's, until the keyboard says stop."""
    hidden = 0
    while True:
        over = directory is not None and directory.is_over
        hidden += print_fresh(list(book.fresh(ended=over)))
        if over:
            return hidden
        clock.pause(_POLL_S)


def _tell(book: Logbook, *, hidden: int) -> None:
    """Say on standard error what was not printed."""
    for path in sorted(book.folder.glob("*.stderr")):
        if path.stat().st_size:
            print(f"{path.stem} also wrote to {path}", file=sys.stderr)
    if hidden:
        print(f"{hidden} lines about progress left out; --all shows them", file=sys.stderr)
    if book.damaged:
        each = ", ".join(f"{name} {count}" for name, count in sorted(book.damaged.items()))
        print(f"{sum(book.damaged.values())} damaged lines left out ({each}): cut short, or no JSON object", file=sys.stderr)
