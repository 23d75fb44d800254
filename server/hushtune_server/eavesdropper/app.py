"""The eavesdropper as a process: listens, attacks after every reception, and keeps its evidence readable at any time."""

import asyncio
import json
import logging
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from hushtune_common.clock import Clock
from hushtune_common.config import Scenario, without_seed
from hushtune_common.errors import MalformedUpdate
from hushtune_common.link.channel import Reception
from hushtune_common.logs import log_event
from hushtune_common.messages import Listener, Role, SecrecyDesign
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobStore
from hushtune_common.wire import endpoint
from hushtune_common.wire.lifetime import run_until, stop_signal
from hushtune_common.wire.listening import AirListener
from hushtune_server.eavesdropper.attack import AbstractDecoder, Evidence, PublicKnowledge
from hushtune_server.eavesdropper.gateway import Overhearing, TapGateway

_log = logging.getLogger(__name__)
_BLOBS_PER_CLIENT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EavesdropperOptions:
    """Where the air is and where evidence goes; ``kit`` and ``state_dir`` are folders."""

    scenario: Scenario
    kit: Path
    state_dir: Path
    air: str


async def listen(options: EavesdropperOptions, *, clock: Clock, seeds: SeedTree) -> int:
    """Listen until SIGTERM or SIGINT; return 0. ``evidence.json`` in the state folder is whole after every reception.

    The seed is set to zero before anything uses it, here too: the tap must not be able to repeat the draws of the others.
    """
    scenario = without_seed(options.scenario)
    own_seeds = SeedTree(scenario.seed, seeds.path)
    log_event(_log, "scenario_resolved", scenario=scenario.name, digest=scenario.digest)
    kit = endpoint.Kit.load(options.kit)
    options.state_dir.mkdir(parents=True, exist_ok=True)
    quota = _BLOBS_PER_CLIENT * len(scenario.clients) * scenario.limits.attempts_max * scenario.limits.update_bytes_max
    store = BlobStore(options.state_dir / "blobs", quota_bytes=quota)
    case = Case(scenario, state_dir=options.state_dir, attack=AbstractDecoder(seeds=own_seeds))
    channel = endpoint.connect(options.air, role=Role.AIR, kit=kit, timing=scenario.timing, clock=clock)
    listener = AirListener(channel, scenario, listener=Listener.TAP, store=store, clock=clock, seeds=own_seeds)

    async def work() -> None:
        log_event(_log, "phase_changed", phase="connecting to the air")
        await endpoint.ready(channel, address=options.air, role=Role.AIR, timing=scenario.timing)
        log_event(_log, "phase_changed", phase="listening on the tap")
        async with aclosing(TapGateway(listener).overhearings()) as overhearings:
            async for overhearing in overhearings:
                await asyncio.to_thread(case.take, overhearing)

    case.write()
    with stop_signal() as stop:
        try:
            await run_until(stop, work())
        finally:
            await channel.close()
    case.write()
    log_event(_log, "evidence_written", updates=len(case.evidence), path=str(case.path))
    return 0


@dataclass(slots=True)
class _Target:
    """Everything heard of one client's update in one round."""

    design: SecrecyDesign
    receptions: list[Reception] = field(default_factory=list[Reception])


class Case:
    """What the eavesdropper has gathered so far: receptions by client and round, evidence, best guesses.

    Law: `take` and `write` may be called from two threads at once; each waits for the other to finish.
    """

    def __init__(self, scenario: Scenario, *, state_dir: Path, attack: AbstractDecoder) -> None:
        """Keep evidence in ``state_dir``."""
        self._scenario = scenario
        self._attack = attack
        self._guesses = state_dir / "guesses"
        self._targets: dict[tuple[str, int], _Target] = {}
        self._evidence: dict[tuple[str, int], Evidence] = {}
        self._lock = Lock()  # an attack goes on in its thread when the process is told to stop and writes its last file
        self.path = state_dir / "evidence.json"

    @property
    def evidence(self) -> Sequence[Evidence]:
        """The latest evidence about each update."""
        return tuple(self._evidence.values())

    def take(self, overhearing: Overhearing) -> None:
        """Attack with one more reception and write everything down. Blocks for the computation."""
        with self._lock:
            self._take(overhearing)

    def write(self) -> None:
        """Replace ``evidence.json`` as a whole, with the attack in it that is going on in another thread."""
        with self._lock:
            self._write()

    def _take(self, overhearing: Overhearing) -> None:
        transmission = overhearing.notice.transmission
        key = transmission.key
        slot = (str(key.client), key.round_id)
        target = self._targets.setdefault(slot, _Target(design=transmission.design))
        target.receptions.append(overhearing.reception)
        public = PublicKnowledge.of(self._scenario, client=key.client, design=target.design)
        try:
            evidence = self._attack.run(target.receptions, public)
            guess, _ = self._attack.guess(target.receptions)
        except MalformedUpdate as fault:
            target.receptions.pop()
            log_event(_log, "reception_unreadable", level=logging.WARNING, client=key.client, reason=fault.reason)
            return
        self._evidence[slot] = evidence
        self._guesses.mkdir(parents=True, exist_ok=True)
        (self._guesses / f"{key.client}-{key.round_id}.bin").write_bytes(guess.data)
        self._write()
        log_event(
            _log,
            "reception_attacked",
            client=key.client,
            round_id=key.round_id,
            attempt=key.attempt,
            blocks=evidence.blocks.of,
            blocks_heard=evidence.blocks.count,
            fidelity=evidence.fidelity,
            snr_mean_db=evidence.snr_mean_db,
            snr_bound_db=evidence.snr_bound_db,
            valid=evidence.valid,
        )

    def _write(self) -> None:
        body = {
            "fidelity": self._scenario.air.fidelity,
            "summary": self._summary(),
            "updates": [{"round_id": round_id, **e.to_json()} for (_, round_id), e in self._evidence.items()],
        }
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)

    def _summary(self) -> str:
        found = self.evidence
        if not found:
            return "heard nothing"
        heard, sent = sum(e.blocks.count for e in found), sum(e.blocks.of for e in found)
        known, total = sum(e.bytes_known for e in found), sum(e.bytes_total for e in found)
        bound = f"leakage bound at most 2^{max(e.log2_delta_total for e in found):.1f} per update (its SNR assumption held)"
        if not all(e.assumption_held for e in found):
            bound = "no leakage bound: the assumption on the tap's SNR FAILED"
        control = "passed" if all(e.valid for e in found) else "FAILED, so this says nothing"
        return (
            f"decoded {heard} of {sent} hash blocks, knows {known} of {total} sealed bytes; {bound}; "
            f"positive control {control}; fidelity {self._scenario.air.fidelity}"
        )
