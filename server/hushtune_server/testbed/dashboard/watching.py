"""What is the state of the page right now? Followed by looking at the sizes of files, and told to whoever waits for a change.

Every look costs a few system calls, whatever the run's size; what was read is never read again, unless a file has become shorter
or another run has begun: then everything is read anew.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hushtune_common.clock import Clock
from hushtune_common.errors import HushtuneError
from hushtune_server.testbed.dashboard.files import Files
from hushtune_server.testbed.dashboard.fold import fold
from hushtune_server.testbed.dashboard.patches import EMPTY, Tree
from hushtune_server.testbed.dashboard.values import Json
from hushtune_server.testbed.logbook import lines
from hushtune_server.testbed.logbook.lines import Logbook
from hushtune_server.testbed.rundir import RunDirectory

LOOK_S: Final = 0.25
_FILES_EVERY: Final = 4
"""What changes rarely is looked at every so many looks, and whenever a line came."""

Place = tuple[Path, RunDirectory | None]
Find = Callable[[], Place | None]
"""Where the logs lie now: the folder, and the run's directory if it is one; nothing before there is any."""


@dataclass(slots=True)
class Book:
    """One run: its logs folded so far, and what its files say."""

    folder: Path
    files: Files
    live: Tree = field(default_factory=dict)
    _logbook: Logbook | None = None
    _marks: dict[Path, tuple[int, int]] = field(default_factory=dict[Path, tuple[int, int]])

    def look(self, *, ended: bool) -> bool:
        """Read what was added; return whether anything was."""
        marks = {path: mark for path in lines.files(self.folder).values() if (mark := _mark(path)) is not None}
        if self._logbook is None or any(lines.is_anew(p, inode=inode, size=size) for p, (inode, size) in self._marks.items()):
            self._logbook, self.live = Logbook(self.folder), EMPTY
        elif marks == self._marks and not ended:
            return False
        self._marks = marks
        before = self.live
        # In the order in which each process wrote them: a clock that was set back must not make live another tale.
        for line in sorted(self._logbook.fresh(ended=ended), key=lambda each: (each.process, each.index)):
            self.live = fold(self.live, line)
        return self.live is not before

    @property
    def damaged(self) -> Json:
        """How many lines of each process could not be read."""
        return {} if self._logbook is None else dict(self._logbook.damaged)


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size


@dataclass(slots=True)
class Watch:
    """Follows a run and keeps ``state``, a tree that is never changed, only replaced."""

    find: Find
    clock: Clock
    scenario_path: Path | None = None
    state: Tree = field(default_factory=lambda: {"run": {"status": "waiting"}})
    stopped: bool = False
    _book: Book | None = None
    _looks: int = 0
    _ended_read: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self) -> None:
        """Look again and again until `stop`."""
        while not self.stopped:
            fresh = await asyncio.to_thread(self.look)
            if fresh is not self.state:
                self.state = fresh
                self._wake()
            await self.clock.sleep(LOOK_S)

    def stop(self) -> None:
        """End `follow` and all who wait."""
        self.stopped = True
        self._wake()

    async def changed(self, *, within_s: float) -> None:
        """Wait for another state, or so long."""
        waiting = self._changed
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await waiting.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def look(self) -> Tree:
        """Return the state after one look at the files; the very same one where nothing has changed."""
        rarely = self._looks % _FILES_EVERY == 0
        self._looks += 1
        if rarely:
            self._turn_to(self._place())
        book = self._book
        if book is None:
            return self.state if self.state.get("run") == {"status": "waiting"} else {"run": {"status": "waiting"}}
        if not (book.look(ended=self._is_over(book)) or rarely):
            return self.state
        return self._told(book)

    def _place(self) -> Place | None:
        try:
            return self.find()
        except HushtuneError:
            return None

    def _turn_to(self, place: Place | None) -> None:
        if place is None:
            self._book = None
        elif self._book is None or self._book.folder != place[0]:
            folder, run = place
            self._book = Book(folder=folder, files=Files(folder=folder, run=run, scenario_path=self.scenario_path))
            self._ended_read = False

    def _is_over(self, book: Book) -> bool:
        """Whether nobody writes any more, so that a last line without its end has to be taken as it is; true once."""
        run = book.files.run
        if run is None or self._ended_read or self._looks % _FILES_EVERY != 1:
            return False
        self._ended_read = run.is_over
        return self._ended_read

    def _told(self, book: Book) -> Tree:
        """Put the parts together; a part that is equal to what it was stays the very same."""
        fresh: Json = {
            "run": book.files.facts(),
            "places": book.files.places(),
            "live": book.live,
            "equal": book.files.baseline(book.live),
            "bytes": book.files.bytes(book.live),
            "damaged": book.damaged,
        }
        kept = {key: self.state[key] if self.state.get(key) == value else value for key, value in fresh.items()}
        same = kept.keys() == self.state.keys() and all(kept[key] is self.state[key] for key in kept)
        return self.state if same else kept
