"""Many clients in one process that take part in a run without training: each with its own kit, connection, journal and state."""

import asyncio
import json
import logging
import resource
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hushtune_client.conductor import Conductor
from hushtune_client.gateway import CoordinatorGateway, Manners
from hushtune_client.progress import Status
from hushtune_client.rehearsal.duties import LightDuties, Waits
from hushtune_client.state import ClientState
from hushtune_common.aggregation import SecureConfig
from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import ConfigError
from hushtune_common.logs import log_event
from hushtune_common.messages import ClientId, Role
from hushtune_common.seeding import SeedTree
from hushtune_common.wire.endpoint import Kit, connect, ready
from hushtune_common.wire.lifetime import run_until, stop_signal

_logger = logging.getLogger(__name__)

MEASURED = "rehearsal_measured"
"""The last event of the process: what its clients waited, and what they took of its memory."""

_AT_ONCE = 16
"""Connections that are opened at the same time: a handshake is work for both ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalOptions:
    """Which clients of the scenario take part; ``kits`` and ``state_dir`` have a folder for each of them."""

    scenario: Scenario
    clients: tuple[str, ...]
    kits: Path
    state_dir: Path
    coordinator: str


async def run(options: RehearsalOptions, *, clock: Clock, seeds: SeedTree) -> int:
    """Take part until the run is over; 0 when every client got there. Raises the error of the first one that did not."""
    if isinstance(options.scenario.owner.aggregation, SecureConfig):
        raise ConfigError("owner.aggregation.kind", "a rehearsal has no updates that could be added; take kind mean for it")
    with stop_signal() as stop:
        return 0 if await run_until(stop, _rehearse(options, clock=clock, seeds=seeds)) else 130


async def _rehearse(options: RehearsalOptions, *, clock: Clock, seeds: SeedTree) -> None:
    empty_bytes = _resident_bytes()
    door = asyncio.Semaphore(_AT_ONCE)
    log_event(_logger, "scenario_resolved", scenario=options.scenario.name, digest=options.scenario.digest)
    lives = [asyncio.create_task(_live(options, name, door=door, clock=clock, seeds=seeds)) for name in options.clients]
    try:
        found = await asyncio.gather(*lives)
    finally:
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
    waits = dict(zip(options.clients, found, strict=True))
    grown = max(0, _resident_bytes() - empty_bytes)
    figures: dict[str, Any] = {name: asdict(each) for name, each in waits.items()}
    log_event(_logger, MEASURED, clients=len(waits), bytes_per_client=grown // len(waits), waits=json.dumps(figures))


async def _live(options: RehearsalOptions, name: str, *, door: asyncio.Semaphore, clock: Clock, seeds: SeedTree) -> Waits:
    """Take part as one client from its first connection to its goodbye."""
    scenario = options.scenario
    device = scenario.client(name)
    kit = Kit.load(options.kits / name)
    manners = Manners(
        timing=scenario.timing, attempts_max=scenario.limits.attempts_max, clock=clock, seeds=seeds.child(name, "retries")
    )
    async with AsyncExitStack() as stack:
        limits = scenario.limits
        state = ClientState.open(
            options.state_dir / name,
            client=ClientId(name),
            attempts_max=limits.attempts_max,
            directives_max=limits.directives_max,
        )
        stack.push_async_callback(state.close)
        channel = connect(options.coordinator, role=Role.COORDINATOR, kit=kit, timing=scenario.timing, clock=clock)
        stack.push_async_callback(channel.close)
        async with door:
            await ready(channel, address=options.coordinator, role=Role.COORDINATOR, timing=scenario.timing)
        coordinator = CoordinatorGateway(channel, scenario=scenario.digest, manners=manners)
        status = Status()
        duties = LightDuties(device, coordinator=coordinator, state=state, status=status, clock=clock)
        await Conductor(coordinator, state=state, status=status, clock=clock).conduct(duties)
        return duties.waits


def _resident_bytes() -> int:
    """Return the memory of this process that is in use now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * resource.getpagesize()
