"""A sealed update's way to the owner, over production code from the client's disk to the air's, under everything that goes wrong.

The client codes frames, uploads and transmits them; the air stores, carries and lets the owner and the tap hear; the owner
acknowledges what it got and the rest is coded anew. Framer, journaled client state, gateways, retries, blobs service and store,
partial files, the air's ledger and medium, and the listeners are the production's; time, network and disks are simulated, clocks
are skewed, machines are killed or lose their power in the middle of a sync. Laws, checked at every transmission, hearing, answer
and restart:

- an attempt is one frame for ever, and no two attempts share a coded block: its random bits are fresh;
- who hears a transmission again hears the same noise: nobody gets a second look;
- a blob has the content of its name, and one that was acknowledged as complete survives any loss of power until it is let go;
- nothing is refused that only the weather is to blame for; once it is fair, every block arrives.

Replay one world with its trace: ``python -m tests.simulation.delivery SEED``; many worlds from there on:
``python -m tests.simulation.delivery 0 10000 --jobs 2``.
"""

import asyncio
import logging
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from hushtune_client.uplink import Framer
from hushtune_common.config import Scenario
from hushtune_common.messages import (
    Caller,
    Listener,
    Role,
)
from hushtune_common.seeding import SeedTree
from hushtune_common.store import partial
from hushtune_common.wire import pace, transfer
from tests.simulation.delivery_laws import Laws, WatchedStore
from tests.simulation.delivery_machines import Air, Client, Receiver
from tests.simulation.delivery_setting import (
    DESIGN,
    FAULTS_S,
    PART_BYTES,
    PATIENCE_S,
    SYNC_BYTES,
    Weather,
    scenario_of,
)
from tests.simulation.disk import PowerCut, StrictDisk, watched
from tests.simulation.loop import SimulatedLoop
from tests.simulation.many import Counts, Kind, main
from tests.simulation.network import CALM, Channel
from tests.simulation.simulator import Violation


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a world ended."""

    seconds: float
    attempts: int
    air_lives: int
    client_lives: int
    hearings: int


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a world is made of; tests put mutants in."""

    store: type[WatchedStore] = WatchedStore
    framer: Callable[[Framer], Framer] = field(default=lambda framer: framer)
    air_seeds: Callable[["World"], SeedTree] = field(default=lambda world: world.seeds.child("air"))


class World:
    """One world from its first event to its end."""

    def __init__(self, seed: int, folder: Path, *, parts: Parts, fair: bool) -> None:
        self.seeds = SeedTree(seed).child("delivery")
        self.rng = self.seeds.child("world").generator()
        self.folder = folder
        self.trace: list[str] = []
        self.disks: list[StrictDisk] = []
        self.weather = Weather.drawn(self.rng)
        self.is_fair = fair
        self.loop = SimulatedLoop(self.rng, work_s=0.05)
        self.laws = Laws(self)
        self.blocks = int(self.rng.integers(2, 6))
        self.update = self.seeds.child("update").generator().bytes(self.blocks * DESIGN.payload_bytes - 7)
        self.scenario: Scenario = scenario_of()
        self._parts = parts
        self._violation: BaseException | None = None

    def run(self) -> Ending:
        """Let everything happen; raise ``Violation`` when a law breaks or the update does not arrive in fair weather."""
        asyncio.set_event_loop(self.loop)
        try:
            return self.loop.run_until_complete(self._story())
        finally:
            _end(self.loop)

    def draw(self) -> float:
        return float(self.rng.random())

    def note(self, text: str) -> None:
        self.trace.append(f"{self.loop.time():8.2f} {text}")

    def broken(self, problem: str) -> Violation:
        """Return a violation, and remember it, in case somebody catches it on its way."""
        violation = Violation(problem)
        self._violation = self._violation or violation
        return violation

    def seen(self, task: "asyncio.Task[None]") -> None:
        """Take note of how a machine's life ended by itself."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, PowerCut):
            self._violation = self._violation or error

    def channel(self, air: Air, *, role: Role, name: str) -> Channel:
        """Return a channel of a caller to the air, through the weather of the moment."""
        caller = Caller(role=role, name=name)
        return Channel(air.host, caller=caller, rng=self.rng, weather=lambda: CALM if self.is_fair else self.weather.network)

    async def _story(self) -> Ending:
        air = Air(self, store=self._parts.store, seeds=lambda: self._parts.air_seeds(self))
        client = Client(self, air, framer=self._parts.framer)
        air.start()
        client.start()
        owner = Receiver(self, air, Listener.MAIN)
        Receiver(self, air, Listener.TAP)
        self.loop.call_later(FAULTS_S, self._clear)
        while not client.done and self._violation is None:
            if self.loop.time() > FAULTS_S + PATIENCE_S:
                raise Violation(f"the update did not arrive within {PATIENCE_S:g} s of fair weather")
            await asyncio.sleep(0.5)
        if self._violation is not None:
            raise self._violation
        if owner.got != set(range(self.blocks)):
            raise Violation(f"the client is through, and the owner has blocks {sorted(owner.got)} of {self.blocks}")
        attempts = sum("is answered" in line for line in self.trace)
        seconds = self.loop.time()
        return Ending(
            seconds=seconds, attempts=attempts, air_lives=air.life, client_lives=client.life, hearings=self.laws.hearings
        )

    def _clear(self) -> None:
        self.note("faults stop")
        self.is_fair = True


def _end(loop: asyncio.AbstractEventLoop) -> None:
    """End what a story leaves behind, without letting time pass."""
    logging.disable(logging.CRITICAL)
    try:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        logging.disable(logging.NOTSET)
        asyncio.set_event_loop(None)
        loop.close()


@contextmanager
def small_parts() -> Generator[None]:
    """Let frames of a few kilobytes have as many parts, legs and commits as an update of megabytes."""
    with (
        mock.patch.object(transfer, "_SMALL_PART_BYTES", PART_BYTES),
        mock.patch.object(pace, "LEG_BYTES_MIN", 2 * PART_BYTES),
        mock.patch.object(pace, "LEG_BYTES_MAX", 4 * PART_BYTES),
        mock.patch.object(partial, "SYNC_BYTES", SYNC_BYTES),
    ):
        yield


def play(seed: int, *, parts: Parts | None = None, fair: bool = False, show: bool = False) -> Ending:
    """Run one world; a ``Violation`` says how to see it again."""
    with tempfile.TemporaryDirectory(prefix="hushtune-delivery-", dir=_memory()) as folder, small_parts():
        world = World(seed, Path(folder), parts=parts or Parts(), fair=fair)
        before = logging.getLogger().manager.disable
        logging.disable(logging.CRITICAL)
        try:
            with watched(world.disks):
                return world.run()
        except Violation as violation:
            problem = f"seed {seed}: {violation}; replay: python -m tests.simulation.delivery {seed}"
            raise Violation(problem) from None
        finally:
            logging.disable(before)
            if show:
                print("\n".join(world.trace))


def trace_of(seed: int) -> list[str]:
    """Return what happened in a world."""
    with tempfile.TemporaryDirectory(prefix="hushtune-delivery-", dir=_memory()) as folder, small_parts():
        world = World(seed, Path(folder), parts=Parts(), fair=False)
        with watched(world.disks):
            world.run()
        return world.trace


def _memory() -> str | None:
    """Return a folder in memory where there is one: nothing here has to outlive the process."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def counted(seed: int) -> Counts:
    """Play one world and count what happened in it."""
    ending = play(seed)
    lives = {"lives of the air": ending.air_lives, "lives of the client": ending.client_lives}
    return {"attempts": ending.attempts, **lives, "hearings": ending.hearings}


def replayed(seed: int) -> None:
    """Play one world and show its trace."""
    ending = play(seed, show=True)
    print(f"seed {seed}: {ending}")


KIND = Kind(name="delivery", play=counted, replay=replayed)

if __name__ == "__main__":
    main(KIND, about=__doc__)
