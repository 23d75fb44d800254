"""The client as a process: what it is made of, how it starts, how it goes on after a fault, how it stops."""

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from hushtune_client.conductor import Conductor
from hushtune_client.duties import Duties
from hushtune_client.gateway import Addresses, Manners, open_ports
from hushtune_client.governor import Throttle, own_cores
from hushtune_client.own_training import OwnTraining, require_allowed
from hushtune_client.phases import Idle
from hushtune_client.ports import Ports
from hushtune_client.private import own_records
from hushtune_client.progress import Status
from hushtune_client.sounding import Sounder
from hushtune_client.state import ClientState
from hushtune_client.sums import Sums
from hushtune_client.trainer import Trainer
from hushtune_common.aggregation import SecureConfig, resolved
from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import (
    ConfigError,
)
from hushtune_common.logs import log_event
from hushtune_common.messages import Caller, ClientId, Role
from hushtune_common.metrics.watch import Watch as Watched
from hushtune_common.secagg.identity import Identity, Verifier
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobStore
from hushtune_common.store.room import Room
from hushtune_common.wire.bell import Bell
from hushtune_common.wire.kit import Kit, remaining_s, require_valid
from hushtune_common.wire.lifetime import run_until, stop_signal
from hushtune_common.wire.revocation import Withdrawn, require_not_revoked

_logger = logging.getLogger(__name__)

INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """Who this client is, where it keeps its state, and where its counterparts listen (``HOST:PORT``).

    ``data`` is this client's own text (each such as ``txt:FILE``), used whole; without it the client takes its share of the
    scenario's private data. With ``own`` it brings what it trained elsewhere, and trains nothing here.
    """

    scenario: Scenario
    client_id: str
    kit: Path
    state_dir: Path
    owner: str
    coordinator: str
    air: str
    data: tuple[str, ...]
    own: OwnTraining | None = None
    watched: Watched = field(default_factory=Watched)


async def run(options: ClientOptions, *, clock: Clock, seeds: SeedTree) -> int:
    """Take part in a run until its last round is over, and return the exit code.

    0 when the run is over, 130 after SIGTERM or SIGINT, otherwise the code of the error that spoiled this client's part of the
    last round, or that of `QuorumMissed` when that round failed as a whole. ``seeds`` is the scenario's root. Raises the typed
    error of whatever makes taking part impossible.
    """
    life = _Life(options, clock=clock, seeds=seeds)
    with stop_signal() as stop:
        finished = await run_until(stop, life.live())
    if not finished:
        log_event(_logger, "process_interrupted", exit_code=INTERRUPTED)
    return life.code if finished else INTERRUPTED


class _Life:
    """Composes the process; whatever happens, no child process and no open stream is left behind."""

    def __init__(self, options: ClientOptions, *, clock: Clock, seeds: SeedTree) -> None:
        self._options = options
        self._clock = clock
        self._seeds = seeds
        self.code = 0

    async def live(self) -> None:
        """Take part from the first check to the last goodbye."""
        options, scenario = self._options, self._options.scenario
        device = scenario.client(options.client_id)
        if options.own is not None:
            require_allowed(options.own, training=scenario.training)
        kit = _own_kit(options, clock=self._clock)
        log_event(_logger, "scenario_resolved", scenario=scenario.name, digest=scenario.digest)
        status = Status()
        status.enter("reading private text")
        async with AsyncExitStack() as stack:
            state = ClientState.open(
                options.state_dir,
                client=ClientId(device.id),
                attempts_max=scenario.limits.attempts_max,
                directives_max=scenario.limits.directives_max,
                durability=scenario.state.durability,
                room=self._room,
            )
            stack.push_async_callback(state.close)
            self._offer(kit, state=state)
            trainer = Trainer(clock=self._clock, throttle=_throttle(scenario))
            stack.push_async_callback(trainer.stop)
            if options.own is None:
                trainer.start()  # imports torch while this process reads text and joins
            records = await asyncio.to_thread(self._read_records)
            status.enter("connecting")
            store = self._store()
            stack.push_async_callback(store.settle_begun)
            ports = await stack.enter_async_context(self._open_ports(kit, store))
            conductor = Conductor(ports.coordinator, state=state, status=status, clock=self._clock, room=self._room)
            sounder = Sounder(
                scenario=scenario,
                device=device,
                ports=ports,
                state=state,
                status=status,
                clock=self._clock,
                note=conductor.note,
                turn=asyncio.Lock(),
                bell=Bell(),
            )
            sums = self._sums(kit, ports=ports, state=state)
            duties = Duties(
                scenario=scenario,
                device=device,
                records=records,
                ports=ports,
                trainer=trainer,
                state=state,
                status=status,
                clock=self._clock,
                seeds=self._seeds,
                aside=asyncio.to_thread,
                sounder=sounder,
                emit=conductor.emit,
                own=options.own,
                sums=sums,
            )
            self.code = await conductor.conduct(duties, sums=sums)

    def _sums(self, kit: Kit, *, ports: Ports, state: ClientState) -> Sums | None:
        """Return this client's part in sums, none where the owner judges updates one by one."""
        scenario = self._options.scenario
        options = scenario.owner.aggregation
        log_event(_logger, "aggregation_resolved", **resolved(options, clients=len(scenario.clients)))
        if not isinstance(options, SecureConfig):
            return None
        return Sums(
            scenario=scenario,
            client=ClientId(self._options.client_id),
            ports=ports,
            state=state,
            clock=self._clock,
            seeds=self._seeds.child(self._options.client_id, "sums"),
            sign=Identity(certificate=kit.certificate, key=kit.key).sign,
            verify=Verifier(authority=kit.ca, clock=self._clock, withdrawn=Withdrawn(kit, clock=self._clock)).verify,
            bell=Bell(),
            within=_within,
            aside=asyncio.to_thread,
        )

    def _room(self) -> Room:
        """Return the wait for room on this machine's disk: as long as a round may take."""
        return Room(clock=self._clock, within_s=self._options.scenario.timing.round_s)

    def _read_records(self) -> tuple[str, ...]:
        options = self._options
        records = own_records(options.scenario, client_id=options.client_id, sources=options.data, seeds=self._seeds)
        log_event(_logger, "private_text_read", records=len(records), own_files=len(options.data))
        return records

    def _store(self) -> BlobStore:
        options = self._options
        # An emulator, the next one, and what it is made of.
        count = 1 if options.scenario.coordinator.rounds == 1 else 3
        quota_bytes = count * options.scenario.limits.emulator_bytes_max
        store = BlobStore(options.state_dir / "blobs", quota_bytes=quota_bytes)
        options.watched.offer_store(lambda: store.held_bytes, quota_bytes=quota_bytes)
        return store

    def _open_ports(self, kit: Kit, store: BlobStore) -> AbstractAsyncContextManager[Ports]:
        options, limits = self._options, self._options.scenario.limits
        manners = Manners(
            timing=options.scenario.timing,
            attempts_max=limits.attempts_max,
            clock=self._clock,
            seeds=self._seeds.child(options.client_id, "retries"),
        )
        addresses = Addresses(owner=options.owner, coordinator=options.coordinator, air=options.air)
        calls = options.watched.calls
        return open_ports(addresses, kit=kit, manners=manners, scenario=options.scenario.digest, store=store, calls=calls)

    def _offer(self, kit: Kit, *, state: ClientState) -> None:
        watched = self._options.watched
        watched.offer_journal(self._options.state_dir / "journal.sqlite")
        watched.offer("hushtune_certificate_remaining_seconds", lambda: remaining_s(kit, clock=self._clock))
        watched.offer("hushtune_round", lambda: 0 if isinstance(state.current, Idle) else state.current.round_id)
        watched.offer_state("hushtune_client_step", lambda: type(state.current).__name__.lower())


async def _within(seconds: float, work: Awaitable[None]) -> None:
    async with asyncio.timeout(seconds):
        await work


def _throttle(scenario: Scenario) -> Throttle:
    throttle = Throttle.choose(scenario.compute.governor, cores=own_cores())
    log_event(_logger, "governor_chosen", cpufreq_cores=len(throttle.cores), why=throttle.why)
    return throttle


def _own_kit(options: ClientOptions, *, clock: Clock) -> Kit:
    kit = Kit.load(options.kit)
    require_valid(kit, clock=clock)
    require_not_revoked(kit, clock=clock, needed=False)
    wanted = Caller(role=Role.CLIENT, name=options.client_id)
    if kit.caller != wanted:
        raise ConfigError(
            "--kit", f"{options.kit} is the kit of {kit.caller.uri}, not of {wanted.uri}; give that client's own kit"
        )
    return kit
