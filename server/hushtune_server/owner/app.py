"""The owner as a process: what it is made of, how it starts and how it stops."""

import asyncio
import importlib.metadata
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc

from hushtune_common.aggregation import resolved
from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.errors import ConfigError
from hushtune_common.logs import log_event
from hushtune_common.messages import Caller, ClientId, Listener, Role, RunId, UtilityCurve
from hushtune_common.metrics.watch import Watch
from hushtune_common.model.bundle import read_bundle
from hushtune_common.secagg.identity import Verifier
from hushtune_common.secagg.layout import payload_id
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.store.files import write_durably
from hushtune_common.store.journal import Journal
from hushtune_common.wire import endpoint
from hushtune_common.wire.lifetime import run_until, stop_signal
from hushtune_common.wire.listening import AirListener
from hushtune_common.wire.revocation import Withdrawn
from hushtune_common.wire.transfer import BlobsService, register_blobs
from hushtune_server.owner import book as books
from hushtune_server.owner.book import Book, Publication
from hushtune_server.owner.catalog import Catalog, RoundPress
from hushtune_server.owner.copies import Copies
from hushtune_server.owner.gateway import AirGateway, CoordinatorGateway
from hushtune_server.owner.rounds import OwnerRounds
from hushtune_server.owner.service import Desk, OwnerService, register_owner
from hushtune_server.owner.sums import FOLDER as SUMS
from hushtune_server.owner.sums import SumTable
from hushtune_server.owner.versions import FOLDER as VERSIONS

if TYPE_CHECKING:  # torch is imported in the worker thread, so that signals are heard from the first second on
    from hushtune_common.model.weights import Weights
    from hushtune_server.owner.emulators.engine import Telling
    from hushtune_server.owner.preparing import Prepared
    from hushtune_server.owner.workshop import Workshop

_log = logging.getLogger(__name__)
_SERVICES = ("hushtune.v1.Owner", "hushtune.v1.Blobs")
_GRACE_S = 2.0
_TELL_EVERY_S = 0.5
_PACKAGES = ("hushtune-server", "torch", "transformers", "cryptography", "zstandard")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerOptions:
    """Where the owner listens, whom it talks to, and what it keeps; ``kit``, ``state_dir`` and ``cache_dir`` are folders."""

    scenario: Scenario
    listen: str
    kit: Path
    state_dir: Path
    cache_dir: Path
    coordinator: str
    air: str
    watch: Watch = field(default_factory=Watch)


async def serve(options: OwnerOptions, *, clock: Clock, seeds: SeedTree) -> int:
    """Publish the emulator, judge what comes back, and return 0 after the last round, or when told to stop.

    Everything that touches weights runs in one worker thread; results lie in the state folder (``adapters/``, ``owner.json``).
    """
    scenario = options.scenario
    log_event(_log, "scenario_resolved", scenario=scenario.name, digest=scenario.digest, seed=scenario.seed)
    log_event(_log, "aggregation_resolved", **resolved(scenario.owner.aggregation, clients=len(scenario.clients)))
    kit = endpoint.Kit.load(options.kit)
    options.state_dir.mkdir(parents=True, exist_ok=True)
    journal = Journal.open(
        options.state_dir / "journal.sqlite",
        schema="owner",
        scenario=scenario.digest.hex,
        durability=scenario.state.durability,
    )
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="torch")
    process = OwnerProcess(options, kit=kit, journal=journal, worker=worker, clock=clock, seeds=seeds)
    try:
        with stop_signal() as stop:
            await run_until(stop, process.run())
    finally:
        worker.shutdown(wait=False, cancel_futures=True)
        await journal.close()
    return 0


class OwnerProcess:
    """One life of the owner: prepare, serve, follow the coordinator, listen to the air."""

    def __init__(
        self,
        options: OwnerOptions,
        *,
        kit: endpoint.Kit,
        journal: Journal,
        worker: ThreadPoolExecutor,
        clock: Clock,
        seeds: SeedTree,
    ) -> None:
        """Fold the journal: what was decided in an earlier life stays decided."""
        self._options = options
        self._scenario = options.scenario
        self._kit = kit
        self._journal = journal
        self._worker = worker
        self._clock = clock
        self._seeds = seeds
        self._curve: UtilityCurve | None = None
        self._sums: SumTable | None = None
        size_max = options.scenario.limits.emulator_bytes_max
        copies = Copies.of(options.scenario, state_dir=options.state_dir)
        self._store = BlobStore(options.state_dir / "blobs", quota_bytes=_emulators_max(options.scenario) * size_max)
        self._catalog = Catalog(self._store, size_max=size_max, copies=copies)
        self._book = Book()
        for event in journal.events():
            self._book.apply(event.kind, event.body)
        self._desk = Desk(self._book, clients=frozenset(ClientId(c.id) for c in options.scenario.clients))
        options.watch.offer_journal(options.state_dir / "journal.sqlite")
        options.watch.offer_store(lambda: self._store.held_bytes, quota_bytes=self._store.quota_bytes)
        options.watch.offer("hushtune_verdicts_waiting", lambda: self._desk.waiting_count)

    async def run(self) -> None:
        """Do everything, until the last round is over."""
        timing, addresses = self._scenario.timing, {Role.COORDINATOR: self._options.coordinator, Role.AIR: self._options.air}
        kit, clock, calls = self._kit, self._clock, self._options.watch.calls
        channels = {
            r: endpoint.connect(a, role=r, kit=kit, timing=timing, clock=clock, calls=calls) for r, a in addresses.items()
        }
        coordinator = CoordinatorGateway(channels[Role.COORDINATOR], self._scenario, clock=self._clock, seeds=self._seeds)
        private = _sealing_key(self._options.state_dir / "sealing.key")
        try:
            prepared = None if await self._resumed(channels[Role.COORDINATOR], coordinator) else await self._prepare(private)
            await self._serve(channels, coordinator, prepared, private)
        finally:
            for channel in channels.values():
                await channel.close()

    async def _serve(
        self,
        channels: Mapping[Role, grpc.aio.Channel],
        coordinator: CoordinatorGateway,
        prepared: "Prepared | None",
        private: HybridPrivateKey,
    ) -> None:
        self._sums = SumTable.of(
            self._scenario,
            self._catalog.newest.manifest.adapter,
            folder=self._options.state_dir / SUMS,
            verify=Verifier(authority=self._kit.ca, clock=self._clock, withdrawn=Withdrawn(self._kit, clock=self._clock)).verify,
            clock=self._clock,
        )
        service = OwnerService(self._scenario, desk=self._desk)
        service.sums = self._sums
        server = await endpoint.serve(
            [register_owner(service), register_blobs(self._blobs)],
            names=_SERVICES,
            listen=self._options.listen,
            kit=self._kit,
            clock=self._clock,
            timing=self._scenario.timing,
            scenario=self._scenario.digest,
            calls_max=self._scenario.limits.calls_max,
            watched=self._options.watch,
        )
        try:
            bench = self._in_worker(partial(self._set_up, prepared, private))
            if prepared is not None and (self._options.state_dir / VERSIONS / "current.json").exists():
                await self._begin_with_seated(await bench)
            await self._take_part(service, channels, coordinator, bench)
        except BaseExceptionGroup as group:
            raise _first(group) from group
        finally:
            self._write_report()
            self._desk.close()
            await server.stop(_GRACE_S)

    async def _resumed(self, channel: grpc.aio.Channel, coordinator: CoordinatorGateway) -> bool:
        """Put on offer again what an earlier life published in the run that is still going on; false where there is nothing.

        The coordinator gives a lost owner little time, so the model is loaded once this process has been heard of again.
        """
        if self._book.is_blank:
            return False
        await endpoint.ready(
            channel,
            address=self._options.coordinator,
            role=Role.COORDINATOR,
            timing=self._scenario.timing,
            kit=self._kit,
        )
        run = await coordinator.run()
        publications = self._book.publications(run)
        if not publications:
            return False
        if not self._catalog.restore(publications):
            problem = f"lacks emulators that it published in run {run}; restore it, or begin another run with an empty folder"
            raise ConfigError(str(self._options.state_dir), problem)
        log_event(_log, "run_resumed", run=run, round_id=publications[-1].manifest.round_id)
        return True

    async def _prepare(self, private: HybridPrivateKey) -> "Prepared":
        """Make the emulator that the run begins with, and put it on offer."""
        bundle = self._options.state_dir / "emulator.partial"
        prepared = await self._in_worker(partial(_load, self._options, bundle, self._seeds.child("plan"), self._clock))
        await self._in_worker(partial(self._admit, bundle, base=prepared.source.weights))
        self._curve = await self._in_worker(partial(self._worth, bundle, prepared))
        codec = payload_id(self._scenario, read_bundle(bundle).schema)
        published = await self._catalog.publish(bundle, sealing_key=private.public.to_bytes(), codec=codec)
        alike = prepared.fidelity
        log_event(
            _log,
            "emulator_published",
            round_id=published.manifest.round_id,
            digest=published.blob.digest,
            bytes_total=published.blob.size,
            blocks_kept=len(prepared.plan.kept),
            blocks_dropped=list(prepared.plan.dropped),
            method=prepared.plan.method,
            gradient_cosine=None if alike is None else round(alike.cosine, 4),
            gradient_norm_ratio=None if alike is None else round(alike.norm_ratio, 4),
            middle_cka=None if alike is None else round(alike.cka, 4),
        )
        return prepared

    def _worth(self, bundle: Path, prepared: "Prepared") -> UtilityCurve | None:
        """Measure what updates are worth, in the worker thread, where the scenario has the coordinator plan with that."""
        if self._scenario.coordinator.allocator.utility.kind != "measured":
            return None
        from hushtune_server.owner.worth import worth

        return worth(self._scenario, bundle=bundle, place=prepared.place, state_dir=self._options.state_dir, clock=self._clock)

    async def _begin_with_seated(self, bench: "Workshop") -> None:
        """Let a run begin with the adapter blocks that an earlier one, or a person, has put into the model."""
        press, round_id = RoundPress(self._catalog), self._catalog.newest.manifest.round_id
        renewal = await self._in_worker(partial(bench.renew, round_id))
        if renewal is not None:
            manifest = await press.publish(round_id, renewal)
            taking_up = partial(bench.take_up, manifest, press.path(manifest), copies=press.copies(manifest))
            await self._in_worker(taking_up)
            log_event(_log, "emulator_revised", round_id=round_id, digest=manifest.emulator, bytes_total=manifest.size_bytes)

    def _admit(self, bundle: Path, *, base: "Weights") -> None:
        """Enter the release in the ledger, in the worker thread, before anybody can fetch it; refuse one that shows too much."""
        from hushtune_server.owner.ledger import LEDGER, admit, release_of

        release = release_of(
            read_bundle(bundle),
            base=base,
            recipients=[c.id for c in self._scenario.clients],
            date=self._clock.wall().date().isoformat(),
        )
        admit(self._options.state_dir / LEDGER, release, config=self._scenario.owner.exposure)
        shown = release.coverage.exposure
        log_event(_log, "exposure_measured", share=round(shown.share, 4), verbatim_share=round(shown.verbatim / shown.total, 4))

    @property
    def _blobs(self) -> BlobsService:
        def nobody(caller: Caller, name: BlobName) -> bool:
            return False

        return BlobsService(
            self._store, may_read=self._catalog.may_read, may_write=nobody, size_max=0, idle_s=self._scenario.timing.idle_s
        )

    def _set_up(self, prepared: "Prepared | None", private: HybridPrivateKey) -> "Workshop":
        """Build the workshop, in the worker thread, with the newest emulator on it."""
        from hushtune_server.owner.workshop import Workshop

        newest = self._catalog.newest
        if prepared is None:
            prepared = _reload(self._options, newest.path, self._seeds.child("plan"), self._clock)
        accepted = {replace(j.key, attempt=1): j.digest for j in self._book.judgements if j.accepted and j.digest is not None}
        return Workshop(
            prepared,
            scenario=self._scenario,
            bundle=newest.path,
            manifest=newest.manifest,
            copies=newest.copies,
            private=private,
            state_dir=self._options.state_dir,
            accepted=accepted,
            admit=partial(self._admit, base=prepared.source.weights),
            clock=self._clock,
            sums=self._sums,
        )

    async def _take_part(
        self,
        service: OwnerService,
        channels: Mapping[Role, grpc.aio.Channel],
        coordinator: CoordinatorGateway,
        bench: "asyncio.Future[Workshop]",
    ) -> None:
        timing, clock = self._scenario.timing, self._clock
        listener = AirListener(channels[Role.AIR], self._scenario, listener=Listener.MAIN, clock=clock, seeds=self._seeds)
        log_event(_log, "phase_changed", phase="connecting")
        for role, address in ((Role.COORDINATOR, self._options.coordinator), (Role.AIR, self._options.air)):
            await endpoint.ready(channels[role], address=address, role=role, timing=timing, kit=self._kit)
        run = await coordinator.join(curve=self._curve, layout=None if self._sums is None else self._sums.layout)
        log_event(_log, "run_joined", run=run)
        if self._sums is not None:
            self._sums.enter(run)
        await self._enter_published(run)
        service.run = run
        rounds = OwnerRounds(
            self._scenario,
            run=run,
            book=self._book,
            journal=self._journal,
            desk=self._desk,
            incoming=self._options.state_dir / "incoming",
            bench=bench,
            worker=self._worker,
            press=RoundPress(self._catalog),
            coordinator=coordinator,
            air=AirGateway(channels[Role.AIR], listener, timing=timing),
            clock=clock,
            seeds=self._seeds,
            sums=self._sums,
        )
        self._options.watch.offer("hushtune_receptions_open", lambda: rounds.open_count)
        await rounds.follow()

    async def _enter_published(self, run: RunId) -> None:
        """Write down which emulator the run begins with, so that another life of this process goes on with it."""
        newest = self._catalog.newest
        manifest = newest.manifest
        if self._book.manifest(run, manifest.round_id) is None:
            body = books.to_body(Publication(run=run, manifest=manifest, copies=newest.copies))
            event = await self._journal.append(books.PUBLISHED, body, key=f"published/{run}/{manifest.round_id}")
            self._book.apply(event.kind, event.body)

    def _write_report(self) -> None:
        first, newest = self._catalog.first, self._catalog.newest
        manifest = first.manifest
        body = {
            "bundle": str(first.path.resolve()),
            "bundle_newest": str(newest.path.resolve()),
            "emulator": manifest.emulator.hex,
            "emulator_bytes": manifest.size_bytes,
            "base": manifest.base.hex,
            "plan": manifest.plan.hex,
            "tokenizer": manifest.tokenizer.hex,
            "codec": manifest.codec,
            **books.report(self._book),
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        }
        path = self._options.state_dir / "owner.json"
        write_durably(path, [json.dumps(body, indent=1).encode(), b"\n"], mode=0o644)

    def _in_worker(self, job: Callable[[], T]) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self._worker, job)


def _load(options: OwnerOptions, bundle: Path, seeds: SeedTree, clock: Clock) -> "Prepared":
    """Prepare in the worker thread; torch is imported here and not before."""
    from hushtune_server.owner.preparing import prepare

    return prepare(options.scenario, cache=options.cache_dir, bundle=bundle, seeds=seeds, telling=_telling(clock))


def _reload(options: OwnerOptions, bundle: Path, seeds: SeedTree, clock: Clock) -> "Prepared":
    """Load, in the worker thread, what goes with an emulator that an earlier life made."""
    from hushtune_server.owner.preparing import reopen

    return reopen(options.scenario, cache=options.cache_dir, bundle=bundle, seeds=seeds, telling=_telling(clock))


def _telling(clock: Clock) -> "Telling":
    from hushtune_server.owner.emulators.engine import Telling

    return Telling(phase=lambda phase: log_event(_log, "phase_changed", phase=phase), progress=_teller(clock))


def _teller(clock: Clock) -> Callable[[int, int], None]:
    told_s = clock.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told_s
        if done == total or clock.monotonic() - told_s >= _TELL_EVERY_S:
            told_s = clock.monotonic()
            log_event(_log, "profile_progressed", done=done, total=total)

    return tell


def _emulators_max(scenario: Scenario) -> int:
    """Return how many emulators the owner holds at most: two, and the copies of clients, also while they change."""
    if scenario.owner.fingerprint is None:
        return 2
    return 2 + len(scenario.clients) * (1 if scenario.coordinator.rounds == 1 else 2)


def _sealing_key(path: Path) -> HybridPrivateKey:
    """Load the key that clients seal to, or make one: it outlives a restart, or updates on their way could not be opened."""
    if path.exists():
        return HybridPrivateKey.load(path)
    private = HybridPrivateKey.generate()
    private.save(path)
    return private


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return one error of a group: what stopped the process first is what a person wants to read."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
