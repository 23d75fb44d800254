"""The eavesdropper as a process: listens, attacks chunk by chunk, and keeps its evidence readable at any time."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hushtune_common.clock import Clock
from hushtune_common.config import Scenario, without_seed
from hushtune_common.errors import ProtocolFault
from hushtune_common.link.reception import Reception
from hushtune_common.logs import log_event
from hushtune_common.messages import Listener, ReceptionNotice, Role
from hushtune_common.metrics.watch import Watch
from hushtune_common.seeding import SeedTree
from hushtune_common.wire import endpoint
from hushtune_common.wire.kit import remaining_s
from hushtune_common.wire.lifetime import run_until, stop_signal
from hushtune_common.wire.listening import AirListener
from hushtune_common.wire.revocation import require_not_revoked
from hushtune_server.eavesdropper.case import Case

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EavesdropperOptions:
    """Where the air is and where evidence goes; ``kit`` and ``state_dir`` are folders."""

    scenario: Scenario
    kit: Path
    state_dir: Path
    air: str
    watch: Watch = field(default_factory=Watch)


async def listen(options: EavesdropperOptions, *, clock: Clock, seeds: SeedTree) -> int:
    """Listen until SIGTERM or SIGINT; return 0. ``evidence.json`` in the state folder is whole after every reception.

    The seed is set to zero before anything uses it, here too: the tap must not be able to repeat the draws of the others.
    """
    scenario = without_seed(options.scenario)
    own_seeds = SeedTree(scenario.seed, seeds.path)
    log_event(_log, "scenario_resolved", scenario=scenario.name, digest=scenario.digest)
    kit = endpoint.Kit.load(options.kit)
    require_not_revoked(kit, clock=clock, needed=False)
    options.state_dir.mkdir(parents=True, exist_ok=True)
    case = Case(scenario, state_dir=options.state_dir, seeds=own_seeds)
    options.watch.offer("hushtune_certificate_remaining_seconds", lambda: remaining_s(kit, clock=clock))
    calls = options.watch.calls
    channel = endpoint.connect(options.air, role=Role.AIR, kit=kit, timing=scenario.timing, clock=clock, calls=calls)
    listener = AirListener(channel, scenario, listener=Listener.TAP, clock=clock, seeds=own_seeds)

    async def work() -> None:
        log_event(_log, "phase_changed", phase="connecting to the air")
        await endpoint.ready(channel, address=options.air, role=Role.AIR, timing=scenario.timing, kit=kit)
        log_event(_log, "phase_changed", phase="listening on the tap")
        await attack_all(case, listener)

    case.write()
    with stop_signal() as stop:
        try:
            await run_until(stop, work())
        finally:
            await channel.close()
    case.write()
    log_event(_log, "evidence_written", updates=len(case.evidence), path=str(case.path))
    return 0


class Ears(Protocol):
    """Hears what is announced.

    Laws: notices come in the order of the air's; the receptions of one are all its chunks in order, or end in an error.
    """

    def notices(self) -> AsyncGenerator[ReceptionNotice, None]:
        """Yield what can be heard."""
        ...

    def receive(self, notice: ReceptionNotice) -> AsyncGenerator[Reception, None]:
        """Yield a transmission chunk by chunk."""
        ...


async def attack_all(case: Case, ears: Ears) -> None:
    """Attack one transmission after the other, for as long as there are any."""
    async with aclosing(ears.notices()) as notices:
        async for notice in notices:
            await _attack(case, ears, notice)


async def _attack(case: Case, ears: Ears, notice: ReceptionNotice) -> None:
    """Hear one transmission to its end and attack it on the way; what cannot be read is told in the log and left out."""
    key = notice.transmission.key
    try:
        if not await asyncio.to_thread(case.begin, notice):
            return
        async with aclosing(ears.receive(notice)) as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(case.take, notice, chunk)
    except ProtocolFault as fault:
        log_event(
            _log,
            "reception_unreadable",
            level=logging.WARNING,
            client=key.client,
            round_id=key.round_id,
            attempt=key.attempt,
            part=notice.transmission.part.value,
            digest_frame=notice.transmission.frame,
            reason=fault.reason,
            problem=str(fault),
        )
        await asyncio.to_thread(case.write)
        return
    for trial in case.trials(notice):  # each in a call of its own, so that a signal need not wait for all
        await asyncio.to_thread(case.play, notice, trial)
    await asyncio.to_thread(case.conclude, notice)


_conforms: type[Ears] = AirListener
