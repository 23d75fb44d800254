"""The owner as a process: what it is made of, how it starts and how it stops."""

import asyncio
import importlib.metadata
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hushtune_common.clock import Clock
from hushtune_common.codec.pipeline import codec_id
from hushtune_common.config import Scenario
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.logs import log_event
from hushtune_common.messages import Caller, ClientId, Listener, Role
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.store.journal import Journal
from hushtune_common.wire import endpoint
from hushtune_common.wire.lifetime import run_until, stop_signal
from hushtune_common.wire.listening import AirListener
from hushtune_common.wire.transfer import BlobsService, register_blobs
from hushtune_server.owner import book as books
from hushtune_server.owner.book import Book
from hushtune_server.owner.catalog import Catalog, Published
from hushtune_server.owner.gateway import AirGateway, CoordinatorGateway
from hushtune_server.owner.rounds import OwnerRounds
from hushtune_server.owner.service import Desk, OwnerService, register_owner

if TYPE_CHECKING:  # torch is imported in the worker thread, so that signals are heard from the first second on
    from hushtune_server.owner.workshop import Prepared, Workshop

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


async def serve(options: OwnerOptions, *, clock: Clock, seeds: SeedTree) -> int:
    """Publish the emulator, judge what comes back, and return 0 after the last round, or when told to stop.

    Everything that touches weights runs in one worker thread; results lie in the state folder (``adapters/``, ``owner.json``).
    """
    scenario = options.scenario
    log_event(_log, "scenario_resolved", scenario=scenario.name, digest=scenario.digest, seed=scenario.seed)
    kit = endpoint.Kit.load(options.kit)
    options.state_dir.mkdir(parents=True, exist_ok=True)
    journal = Journal.open(options.state_dir / "journal.sqlite", schema=f"owner/{scenario.digest.hex}")
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
        limits = options.scenario.limits
        self._store = BlobStore(options.state_dir / "blobs", quota_bytes=2 * limits.emulator_bytes_max)
        self._catalog = Catalog(self._store, size_max=limits.emulator_bytes_max)
        self._book = Book()
        for event in journal.events():
            self._book.apply(event.kind, event.body)
        self._desk = Desk(self._book, clients=frozenset(ClientId(c.id) for c in options.scenario.clients))

    async def run(self) -> None:
        """Do everything, until the last round is over."""
        prepared, published, private = await self._prepare()
        service = OwnerService(self._scenario, manifest=published.manifest, desk=self._desk)
        server = await endpoint.serve(
            [register_owner(service), register_blobs(self._blobs)],
            names=_SERVICES,
            listen=self._options.listen,
            kit=self._kit,
            clock=self._clock,
            timing=self._scenario.timing,
        )
        try:
            bench = self._in_worker(partial(self._set_up, prepared, published, private))
            await self._take_part(service, published, bench)
        finally:
            self._desk.close()
            await server.stop(_GRACE_S)

    async def _prepare(self) -> "tuple[Prepared, Published, HybridPrivateKey]":
        state = self._options.state_dir
        bundle = state / "emulator.partial"
        prepared = await self._in_worker(partial(_load, self._options, bundle, self._seeds.child("plan"), self._clock))
        await self._in_worker(partial(self._admit, bundle, prepared))
        private = _sealing_key(state / "sealing.key")
        codec = codec_id(self._scenario.codec)
        published = await self._catalog.publish(bundle, sealing_key=private.public.to_bytes(), codec=codec)
        log_event(
            _log,
            "emulator_published",
            digest=published.blob.digest,
            bytes_total=published.blob.size,
            blocks_kept=len(prepared.plan.kept),
            blocks_dropped=list(prepared.plan.dropped),
            method=prepared.plan.method,
            gradient_cosine=round(prepared.fidelity.cosine, 4),
            gradient_norm_ratio=round(prepared.fidelity.norm_ratio, 4),
            middle_cka=round(prepared.fidelity.cka, 4),
        )
        return prepared, published, private

    def _admit(self, bundle: Path, prepared: "Prepared") -> None:
        """Enter the release in the ledger, in the worker thread, before anybody can fetch it; refuse one that shows too much."""
        from hushtune_common.model.bundle import read_bundle
        from hushtune_server.owner.ledger import LEDGER, admit, release_of

        release = release_of(
            read_bundle(bundle),
            base=prepared.source.weights,
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

        return BlobsService(self._store, may_read=self._catalog.may_read, may_write=nobody, size_max=0)

    def _set_up(self, prepared: "Prepared", published: Published, private: HybridPrivateKey) -> "Workshop":
        """Build the workshop, in the worker thread."""
        from hushtune_server.owner.workshop import Workshop

        accepted = {replace(j.key, attempt=1): j.digest for j in self._book.judgements if j.accepted and j.digest is not None}
        return Workshop(
            prepared,
            scenario=self._scenario,
            bundle=published.path,
            manifest=published.manifest,
            private=private,
            state_dir=self._options.state_dir,
            accepted=accepted,
        )

    async def _take_part(self, service: OwnerService, published: Published, bench: "asyncio.Future[Workshop]") -> None:
        timing, clock = self._scenario.timing, self._clock
        addresses = {Role.COORDINATOR: self._options.coordinator, Role.AIR: self._options.air}
        channels = {r: endpoint.connect(a, role=r, kit=self._kit, timing=timing, clock=clock) for r, a in addresses.items()}
        coordinator = CoordinatorGateway(channels[Role.COORDINATOR], self._scenario, clock=clock, seeds=self._seeds)
        listener = AirListener(channels[Role.AIR], self._scenario, listener=Listener.MAIN, clock=clock, seeds=self._seeds)
        try:
            log_event(_log, "phase_changed", phase="connecting")
            for role, address in addresses.items():
                await endpoint.ready(channels[role], address=address, role=role, timing=timing)
            run = await coordinator.join()
            service.run = run
            log_event(_log, "run_joined", run=run)
            rounds = OwnerRounds(
                self._scenario,
                run=run,
                book=self._book,
                journal=self._journal,
                desk=self._desk,
                incoming=self._options.state_dir / "incoming",
                bench=bench,
                worker=self._worker,
                coordinator=coordinator,
                air=AirGateway(channels[Role.AIR], listener, timing=timing),
                clock=clock,
                seeds=self._seeds,
            )
            await rounds.follow()
        except BaseExceptionGroup as group:
            raise _first(group) from group
        finally:
            self._write_report(published)
            for channel in channels.values():
                await channel.close()

    def _write_report(self, published: Published) -> None:
        manifest = published.manifest
        body = {
            "bundle": str(published.path.resolve()),
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
        partial_path = path.with_suffix(".partial")
        partial_path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        partial_path.replace(path)

    def _in_worker(self, job: Callable[[], T]) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self._worker, job)


def _load(options: OwnerOptions, bundle: Path, seeds: SeedTree, clock: Clock) -> "Prepared":
    """Prepare in the worker thread; torch is imported here and not before."""
    from hushtune_server.owner.workshop import Telling, prepare

    telling = Telling(phase=lambda phase: log_event(_log, "phase_changed", phase=phase), progress=_teller(clock))
    return prepare(options.scenario, cache=options.cache_dir, bundle=bundle, seeds=seeds, telling=telling)


def _teller(clock: Clock) -> Callable[[int, int], None]:
    told_s = clock.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told_s
        if done == total or clock.monotonic() - told_s >= _TELL_EVERY_S:
            told_s = clock.monotonic()
            log_event(_log, "profile_progressed", done=done, total=total)

    return tell


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
