"""Who takes part in a delivery: the air, a client and two listeners, production code on machines that crash."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from threading import Event as Flag
from typing import TYPE_CHECKING, Any

from hushtune_client import phases
from hushtune_client.gateway import AirGateway, Manners
from hushtune_client.state import ClientState
from hushtune_client.uplink import Framer, LinkRandomness
from hushtune_common.errors import HushtuneError, OperatingFault, Replayed, StaleRound
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.modular import draw_public
from hushtune_common.link.randomness import SeededRandomness
from hushtune_common.messages import (
    LinkSeed,
    Listener,
    Part,
    Receipt,
    ReceptionNotice,
    Role,
    Transmission,
    UpdateKey,
)
from hushtune_common.seeding import SeedTree
from hushtune_common.store.journal import Event
from hushtune_common.units import Joule, Second
from hushtune_common.wire import convert, faults
from hushtune_common.wire.listening import AirListener
from hushtune_common.wire.transfer import register_blobs
from hushtune_common.wire.v1 import air_pb2_grpc
from hushtune_server.air.bit_exact import BitExactMedium
from hushtune_server.air.fading import Geography
from hushtune_server.air.service import AirService, register_air
from hushtune_server.air.sky import Sky
from tests.simulation.delivery_laws import WatchedMedium, WatchedStore, WitnessedBlobs
from tests.simulation.delivery_setting import (
    ATTEMPTS_MAX,
    BANDWIDTH,
    CLIENT,
    DESIGN,
    NEVER,
    POWER,
    QUOTA_BYTES,
    ROUND,
    RUN,
    assignment,
)
from tests.simulation.disk import Image, StrictDisk
from tests.simulation.loop import SkewedClock
from tests.simulation.network import Channel, Host

if TYPE_CHECKING:
    from tests.simulation.delivery import World


class Log:
    """A journal that survives its process: what ``append`` returned is there for ever, what it has not returned may be."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._events: list[Event] = []
        self._life = 0

    def opened(self) -> "Log":
        """Begin a life; what an earlier one still meant to write is not written."""
        self._life += 1
        return self

    async def append(self, kind: str, body: Any, *, key: str | None = None) -> Event:
        life = self._life
        await asyncio.sleep(0.02 * self._world.draw())
        if life != self._life:
            await asyncio.get_running_loop().create_future()
        known = next((e for e in self._events if key is not None and e.key == key), None)
        if known is not None and (known.kind, known.body) != (kind, dict(body)):
            raise Replayed(f"{kind} {key}: the key was used for other content")
        if known is None:
            known = Event(seq=len(self._events) + 1, kind=kind, key=key, body=dict(body))
            self._events.append(known)
        if self._world.draw() < 0.2:
            await asyncio.sleep(0.02 * self._world.draw())  # durable, and nobody knows yet
        return known

    def events(self, after: int = 0) -> Sequence[Event]:
        return tuple(self._events[after:])

    async def close(self) -> None:
        """Nothing to close."""


class Machine:
    """A computer that crashes now and then, with a disk and a clock of its own."""

    def __init__(self, world: "World", name: str, *, crash_s: float) -> None:
        self.world = world
        self.name = name
        self.up = False
        self.log = Log(world)
        self.disk = StrictDisk(world.folder / name, rng=world.rng, strikes=self._strikes)
        world.disks.append(self.disk)
        weather = world.weather
        self.clock = SkewedClock(
            world.loop, offset_s=weather.skew_s * world.draw(), rate=1.0 + weather.skew_rate * (world.draw() - 0.5)
        )
        self._crash_s = crash_s
        self._life = 0

    def start(self) -> None:
        """Begin a life."""
        self.up = True
        self._life += 1
        self.log.opened()
        self.world.note(f"{self.name} starts, life {self._life}")
        if self._crash_s < NEVER:
            life = self._life
            self.world.loop.call_later(self.world.rng.exponential(self._crash_s), lambda: self._crash(life, power=None))

    def stopped(self) -> None:
        """End whatever runs."""

    @property
    def life(self) -> int:
        return self._life

    def _strikes(self) -> bool:
        if not self.up or self.world.is_fair or not self.world.draw() < self.world.weather.strike:
            return False
        life = self._life
        self.world.loop.call_soon(lambda: self._crash(life, power=True))
        return True

    def _crash(self, life: int, *, power: bool | None) -> None:
        if not self.up or life != self._life or (self.world.is_fair and power is None):
            return
        cut = self.world.draw() < self.world.weather.power if power is None else power
        self.world.note(f"{self.name} {'loses its power' if cut else 'is killed'}")
        image = self.disk.image(power=cut)
        self.up = False
        self.log.opened()
        self.stopped()
        self.world.loop.call_later(0.2 + 6.0 * self.world.draw(), lambda: self._restart(image))

    def _restart(self, image: Image) -> None:
        self.disk.restore(image)
        self.start()


class Air(Machine):
    """The air: production servicers, store and ledger."""

    def __init__(self, world: "World", *, store: type[WatchedStore], seeds: "Callable[[], SeedTree]") -> None:
        super().__init__(world, "air", crash_s=world.weather.air_crash_s)
        self.host = Host()
        self._store = store
        self._seeds = seeds

    def start(self) -> None:
        super().start()
        life = self.life
        task = asyncio.ensure_future(self._serve())
        task.add_done_callback(lambda done: self.world.seen(done) if life == self.life else None)

    def stopped(self) -> None:
        self.host.crash()

    async def _serve(self) -> None:
        world = self.world
        store = self._store(self.disk.root / "blobs", quota_bytes=QUOTA_BYTES)
        store.laws = world.laws
        world.laws.restarted(store)
        seeds = self._seeds()
        medium = WatchedMedium(BitExactMedium(world.scenario), world.laws)
        sky = Sky(
            world.scenario,
            medium=medium,
            geography=Geography(world.scenario, seeds),
            store=store,
            journal=self.log,  # type: ignore[arg-type]
            clock=self.clock,
            seeds=seeds,
        )
        await self.host.serve(register_air(AirService(sky)), register_blobs(WitnessedBlobs(sky, store, world.laws)))


class Client(Machine):
    """A client with a sealed update: production state, framer and gateway."""

    def __init__(self, world: "World", air: Air, *, framer: "Callable[[Framer], Framer]") -> None:
        super().__init__(world, "client", crash_s=world.weather.client_crash_s)
        self.done = False
        self._air = air
        self._framer = framer
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        super().start()
        life = self.life
        self._task = asyncio.ensure_future(self._live())
        self._task.add_done_callback(lambda done: self.world.seen(done) if life == self.life else None)

    def stopped(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _live(self) -> None:
        state = ClientState(self.disk.root, self.log, client=CLIENT, attempts_max=ATTEMPTS_MAX)  # type: ignore[arg-type]
        for entry in self.log.events():
            state._fold(entry.kind, entry.body)  # pyright: ignore[reportPrivateUsage] - what `ClientState.open` does
        if state.restarted is False:
            await state.join(RUN)
        if isinstance(state.current, phases.Idle):
            await state.record(phases.RoundOpened(round_id=ROUND))
        if isinstance(state.current, phases.Reported):
            await state.record(phases.AssignmentReceived(assignment=assignment()))
        if isinstance(state.current, phases.Assigned):
            await self._seal(state)
        while isinstance(state.current, phases.Uploading):
            await self._send(state, state.current)
        self.done = isinstance(state.current, phases.Completed) and state.current.completion.uploaded
        if not self.done:
            raise self.world.broken(f"the client gave up: {state.current}")

    async def _seal(self, state: ClientState) -> None:
        randomness = SeededRandomness(self.world.seeds.child("public", str(self.life)))
        toeplitz, dither = draw_public(DESIGN, randomness=randomness)
        links = {Part.PAYLOAD: LinkSeed(toeplitz=toeplitz, dither=dither, tag=bytes(32))}
        await state.keep_sealed(ROUND, self.world.update, secret=b"", links=links)
        await state.record(phases.UpdateSealed(round_id=ROUND, bytes_raw=1, train_seconds=Second(1.0), energy=Joule(1.0)))

    async def _send(self, state: ClientState, at: phases.Uploading) -> None:
        """Send one attempt as `Duties` does; what only the weather is to blame for is tried again."""
        try:
            answered = await self._attempt(state, at)
        except OperatingFault as fault:
            self.world.note(f"attempt {at.attempt}: {fault.reason}")
            await self.clock.sleep(1.0)
            return
        except HushtuneError as fault:
            raise self.world.broken(f"attempt {at.attempt} was refused: {fault.reason}: {fault}") from fault
        self.world.note(f"attempt {at.attempt} is answered, {len(answered.missing)} blocks missing")
        await state.record(answered)

    async def _attempt(self, state: ClientState, at: phases.Uploading) -> phases.FrameAnswered:
        key = UpdateKey(run=RUN, round_id=ROUND, client=CLIENT, attempt=at.attempt)
        files, seed = state.files(ROUND), state.link_seed(ROUND, Part.PAYLOAD, design=DESIGN)
        files.forget_frames(before=at.attempt)
        frame = await asyncio.to_thread(
            lambda: self._framer(self._production()).frame(
                state.message(ROUND, Part.PAYLOAD),
                path=files.frame(at.attempt),
                key=key,
                part=Part.PAYLOAD,
                design=DESIGN,
                toeplitz=seed.toeplitz,
                only=at.only,
                stopped=Flag(),
            )
        )
        gateway = AirGateway(self._channel(), manners=self._manners())  # type: ignore[arg-type]
        digest = await gateway.write_frame(key, frame.path)
        transmission = Transmission(
            key=key,
            part=Part.PAYLOAD,
            frame=digest,
            frame_bytes=frame.layout.size,
            design=DESIGN,
            seed=seed,
            power=POWER,
            bandwidth=BANDWIDTH,
        )
        outcome = await gateway.transmit(transmission, cleared=_at_any_time)
        return phases.FrameAnswered(
            round_id=ROUND,
            part=Part.PAYLOAD,
            attempt=at.attempt,
            frame_bytes=frame.layout.size,
            airtime=outcome.airtime,
            energy=Joule(0.0),
            missing=outcome.missing,
        )

    def _production(self) -> Framer:
        # The operating system's bits never come twice; these do not either, in another life, and still make a seed a replay.
        lives = self.world.seeds.child("life", str(self.life))
        randomness = LinkRandomness(kind="seeded", seeds=lives)
        return replace(Framer.of(self.world.scenario, seeds=self.world.seeds), fidelity=Fidelity.BIT_EXACT, randomness=randomness)

    def _channel(self) -> Channel:
        return self.world.channel(self._air, role=Role.CLIENT, name=CLIENT)

    def _manners(self) -> Manners:
        timing = self.world.scenario.timing
        return Manners(timing=timing, attempts_max=4, clock=self.clock, seeds=self.world.seeds.child("manners", str(self.life)))


async def _at_any_time() -> None:
    """Nobody shares the band here: there is no coordinator to ask."""


class Receiver:
    """A listener that never crashes: the owner, which acknowledges, or the tap. It likes to hear things again."""

    def __init__(self, world: "World", air: Air, listener: Listener) -> None:
        self._world = world
        self._air = air
        self._listener = listener
        self.got: set[int] = set()
        task = asyncio.ensure_future(self._listen())
        task.add_done_callback(world.seen)

    async def _listen(self) -> None:
        seen: set[int] = set()
        while True:
            try:
                async with aclosing(self._ears().notices()) as notices:
                    async for notice in notices:
                        if notice.seq not in seen and not notice.acknowledged:
                            await self._take(notice)
                        seen.add(notice.seq)
            except OperatingFault:
                await asyncio.sleep(1.0)

    async def _take(self, notice: ReceptionNotice) -> None:
        """Hear one transmission, at times more than once; the owner then says which blocks it lacks."""
        arrived = await self._hear(notice)
        if self._world.draw() < 0.4:
            arrived = await self._hear(notice)
        if self._listener is Listener.MAIN:
            # Drawn by block, so that the answer is the same whenever it is given.
            lost = {i for i in arrived if self._drawn(notice, i) < self._world.weather.lost and not self._world.is_fair}
            self.got |= arrived - lost
            missing = tuple(sorted(set(range(self._world.blocks)) - self.got))
            await self._acknowledge(Receipt(key=notice.transmission.key, missing=missing))

    def _drawn(self, notice: ReceptionNotice, index: int) -> float:
        key = notice.transmission.key
        return float(self._world.seeds.child("lost", key.text, str(index)).generator().random())

    async def _hear(self, notice: ReceptionNotice) -> set[int]:
        while True:
            try:
                async with aclosing(self._ears().receive(notice)) as receptions:
                    return {int(i) async for r in receptions for i in r.indices}
            except OperatingFault:
                await asyncio.sleep(1.0)
            except StaleRound:
                if self._listener is Listener.MAIN:
                    raise self._world.broken(f"{notice.transmission.key.text} was announced, and cannot be heard") from None
                return set()

    async def _acknowledge(self, receipt: Receipt) -> None:
        role = Role.OWNER
        stub: Any = air_pb2_grpc.AirStub(self._world.channel(self._air, role=role, name="owner"))  # type: ignore[arg-type]
        while True:
            try:
                with faults.translated():
                    await stub.Acknowledge(convert.receipt_to_ack(receipt), timeout=30.0)
            except OperatingFault:
                await asyncio.sleep(0.5)
            else:
                return

    def _ears(self) -> AirListener:
        world = self._world
        role = Role.OWNER if self._listener is Listener.MAIN else Role.EAVESDROPPER
        channel: Any = world.channel(self._air, role=role, name=role.value)
        clock = SkewedClock(world.loop, offset_s=0.0, rate=1.0)
        return AirListener(channel, world.scenario, listener=self._listener, clock=clock, seeds=world.seeds.child("ears"))
