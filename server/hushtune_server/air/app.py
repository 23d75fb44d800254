"""The air as a process: what it is made of, how it starts and how it stops."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.logs import log_event
from hushtune_common.messages import Listener
from hushtune_common.metrics.watch import Watch
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobStore
from hushtune_common.store.files import write_durably
from hushtune_common.store.journal import Journal
from hushtune_common.wire import endpoint
from hushtune_common.wire.lifetime import stop_signal
from hushtune_common.wire.transfer import register_blobs
from hushtune_server.air.abstract import AbstractMedium
from hushtune_server.air.bit_exact import BitExactMedium
from hushtune_server.air.fading import Geography
from hushtune_server.air.hybrid import HybridMedium
from hushtune_server.air.ledger import Ledger
from hushtune_server.air.medium import Medium
from hushtune_server.air.service import AirBlobs, AirService, register_air
from hushtune_server.air.sky import Sky

_log = logging.getLogger(__name__)
_SERVICES = ("hushtune.v1.Air", "hushtune.v1.Blobs")
_GRACE_S = 2.0
_BLOBS_PER_CLIENT = 3
"""The frame that is being written, the one that the owner has not acknowledged, and one that waits for the tap."""
_MEDIA: Mapping[Fidelity, Callable[[Scenario], Medium]] = {
    Fidelity.BIT_EXACT: BitExactMedium,
    Fidelity.ABSTRACT: AbstractMedium,
    Fidelity.HYBRID: HybridMedium,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AirOptions:
    """Where the air listens and what it keeps; ``kit`` and ``state_dir`` are folders."""

    scenario: Scenario
    listen: str
    kit: Path
    state_dir: Path
    watch: Watch = field(default_factory=Watch)


async def serve(options: AirOptions, *, clock: Clock, seeds: SeedTree) -> int:
    """Serve until SIGTERM or SIGINT; return 0. ``air.json`` in the state folder then tells the true SNRs to the referee."""
    scenario = options.scenario
    log_event(_log, "scenario_resolved", scenario=scenario.name, digest=scenario.digest, seed=scenario.seed)
    kit = endpoint.Kit.load(options.kit)
    quota = _BLOBS_PER_CLIENT * len(scenario.clients) * scenario.limits.frame_bytes_max
    store = BlobStore(options.state_dir / "blobs", quota_bytes=quota)
    journal = Journal.open(
        options.state_dir / "journal.sqlite",
        schema="air",
        version=2,
        scenario=scenario.digest.hex,
        durability=scenario.state.durability,
    )
    sky = Sky(
        scenario,
        medium=_MEDIA[Fidelity(scenario.air.fidelity)](scenario),
        geography=Geography(scenario, seeds),
        store=store,
        journal=journal,
        clock=clock,
        seeds=seeds,
    )
    options.watch.offer_journal(options.state_dir / "journal.sqlite")
    options.watch.offer_store(lambda: store.held_bytes, quota_bytes=quota)
    options.watch.offer("hushtune_frames_waiting", lambda: {each.value: sky.ledger.waiting_count(each) for each in Listener})
    try:
        with stop_signal() as stop:
            server = await endpoint.serve(
                [register_air(AirService(sky)), register_blobs(AirBlobs(sky, store))],
                names=_SERVICES,
                listen=options.listen,
                kit=kit,
                clock=clock,
                timing=scenario.timing,
                scenario=scenario.digest,
                calls_max=scenario.limits.calls_max,
                watched=options.watch,
            )
            log_event(_log, "phase_changed", phase="carrying frames")
            await stop.wait()
            log_event(_log, "phase_changed", phase="stopping")
            sky.drain()
            await server.stop(_GRACE_S)
    finally:
        _write_report(options.state_dir / "air.json", sky.ledger, scenario)
        await journal.close()
    return 0


def _write_report(path: Path, ledger: Ledger, scenario: Scenario) -> None:
    body = {"fidelity": scenario.air.fidelity, "transmissions": ledger.report()}
    write_durably(path, [json.dumps(body, indent=1).encode(), b"\n"], mode=0o644)
