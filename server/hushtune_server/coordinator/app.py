"""The coordinator as a process: what it is made of, how it starts, goes on after a crash, and stops."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from msgspec import structs

from hushtune_common.clock import Clock
from hushtune_common.config import AllocatorConfig, Scenario
from hushtune_common.errors import ConfigError, QuorumMissed, ScenarioMismatch
from hushtune_common.logs import log_event
from hushtune_common.messages import ClientId, ClientReport, RunId, UtilityCurve
from hushtune_common.metrics.watch import Watch
from hushtune_common.secagg.relay import Stage
from hushtune_common.seeding import SeedTree
from hushtune_common.store.files import write_durably
from hushtune_common.store.journal import Journal
from hushtune_common.units import Hertz, Second
from hushtune_common.wire import endpoint
from hushtune_common.wire.lifetime import run_until, stop_signal
from hushtune_server.coordinator.allocators.allocator import Allocation, Allocator
from hushtune_server.coordinator.allocators.equal_share import EqualShare
from hushtune_server.coordinator.allocators.optimised import METHODS, Method, Optimised
from hushtune_server.coordinator.desk import Desk
from hushtune_server.coordinator.events import OWNER, ChannelChanged, Died, Event, Solution, Solved, from_body
from hushtune_server.coordinator.phases import Closed, Failed, Gathering, Rules, State
from hushtune_server.coordinator.ports import Solver
from hushtune_server.coordinator.problems.secrecy import AllocationProblem, believed
from hushtune_server.coordinator.record import record
from hushtune_server.coordinator.rounds import fold
from hushtune_server.coordinator.service import SERVICE, CoordinatorService, register_coordinator
from hushtune_server.coordinator.sums import Sum, needed

_log = logging.getLogger(__name__)
_STARTED = "started"
_GRACE_S = 2.0


def _optimised(method: Method) -> Callable[[AllocatorConfig], Allocator]:
    return lambda config: Optimised(method, clock_share=config.clock_share)


ALLOCATORS: Mapping[str, Callable[[AllocatorConfig], Allocator]] = {
    "equal_share": lambda config: EqualShare(clock_share=config.clock_share),
    **{method: _optimised(method) for method in METHODS},
}
"""The allocators by the name they have in a scenario."""

_DOING: Mapping[str, str] = {
    "gathering": "waiting for clients",
    "open": "waiting for reports",
    "solving": "sharing out resources",
    "assigned": "clients are training",
    "settling": "collecting updates",
    "concluding": "waiting for the owner to conclude",
    "closed": "round closed",
    "failed": "round failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorOptions:
    """Which experiment, under which name, and where; ``kit`` and ``state_dir`` are folders."""

    scenario: Scenario
    run: RunId
    listen: str
    kit: Path
    state_dir: Path
    watch: Watch = field(default_factory=Watch)


async def serve(options: CoordinatorOptions, *, clock: Clock, seeds: SeedTree) -> int:
    """Serve until the run is over, or until SIGTERM or SIGINT; return the exit code.

    0 after the last round, or when told to stop; ``QuorumMissed.exit_code`` when a round failed.
    """
    with stop_signal() as stop:
        return await serve_until(stop, options, clock=clock, seeds=seeds)


async def serve_until(
    stop: asyncio.Event,
    options: CoordinatorOptions,
    *,
    clock: Clock,
    seeds: SeedTree,
    solver: Solver | None = None,
    serving: "asyncio.Future[str] | None" = None,
) -> int:
    """Serve until the run is over or ``stop`` is set; ``serving`` is told the address; ``solver`` replaces the scenario's."""
    scenario = options.scenario
    log_event(_log, "scenario_resolved", scenario=scenario.name, digest=scenario.digest, run=options.run)
    kit = endpoint.Kit.load(options.kit)
    durability = scenario.state.durability
    journal = Journal.open(options.state_dir / "journal.sqlite", schema="coordinator", durability=durability)
    try:
        rules = Rules.of(scenario, run=options.run)
        state = await _recall(journal, options, rules)
        chosen = AllocatorSolver(scenario, clock=clock, seeds=seeds) if solver is None else solver
        witness = Witness(options.state_dir, rules=rules)
        witness.leave(state)
        idle_s = Second(scenario.timing.idle_s)
        desk = Desk(state, rules=rules, log=journal, solver=chosen, clock=clock, idle_s=idle_s, observe=witness.observe)
        _offer(options.watch, desk, journal=options.state_dir / "journal.sqlite")
        server = await endpoint.serve(
            [register_coordinator(CoordinatorService(desk, scenario=scenario, digest=scenario.digest))],
            names=[SERVICE],
            listen=options.listen,
            kit=kit,
            clock=clock,
            timing=scenario.timing,
            calls_max=scenario.limits.calls_max,
            scenario=scenario.digest,
            watched=options.watch,
        )
        if serving is not None:
            serving.set_result(server.address)
        try:
            await run_until(stop, _to_the_end(desk, idle_s=idle_s))
        finally:
            await desk.close()
            await server.stop(_GRACE_S)
        return QuorumMissed.exit_code if isinstance(desk.state.phase, Failed) else 0
    finally:
        await journal.close()


def _offer(watch: Watch, desk: Desk, *, journal: Path) -> None:
    watch.offer_journal(journal)
    watch.offer("hushtune_round", lambda: desk.state.round_id)
    watch.offer_state("hushtune_round_state", lambda: desk.state.name)
    watch.offer("hushtune_clients", lambda: desk.healths)
    watch.offer("hushtune_streams", lambda: desk.stream_count)
    watch.offer("hushtune_directives_waiting", lambda: desk.waiting_count)


async def _to_the_end(desk: Desk, *, idle_s: Second) -> None:
    log_event(_log, "phase_changed", phase=_DOING[desk.state.name])
    await desk.run()
    log_event(_log, "phase_changed", phase="saying goodbye")
    await desk.drained(within_s=idle_s)


async def _recall(journal: Journal, options: CoordinatorOptions, rules: Rules) -> State:
    """Return the state that the journal leads to, and note in it that another life of this process began."""
    whose = {"run": options.run, "scenario": options.scenario.digest.hex}
    stored = journal.events()
    if stored and stored[0].body != whose:
        _refuse(stored[0].body, whose, options.state_dir)
    epoch = 1 + sum(e.kind == _STARTED for e in stored)
    events = [from_body(e.kind, e.body) for e in stored if e.kind != _STARTED]
    await journal.append(_STARTED, whose)
    state = fold(events, rules=rules)
    if epoch > 1:
        log_event(_log, "run_resumed", epoch=epoch, events=len(events), round_id=state.round_id, state=state.name)
    return state


def _refuse(found: Mapping[str, object], whose: Mapping[str, str], state_dir: Path) -> None:
    remedy = f"start with an empty state folder, or go on with what {state_dir} holds"
    if found.get("scenario") != whose["scenario"]:
        held = str(found.get("scenario", "?"))[:12]
        raise ScenarioMismatch(f"{state_dir} holds a run of scenario {held}, this is scenario {whose['scenario'][:12]}: {remedy}")
    raise ConfigError("--run", f"{state_dir} holds run {found.get('run')!r}, this is {whose['run']!r}: {remedy}")


class AllocatorSolver:
    """The scenario's allocator on the scenario's problem."""

    def __init__(self, scenario: Scenario, *, clock: Clock, seeds: SeedTree) -> None:
        """Choose the allocator that the ``scenario`` names."""
        config = scenario.coordinator.allocator
        self._allocator = ALLOCATORS[config.kind](config)
        self._scenario = scenario
        self._clock = clock
        self._seeds = seeds
        self._last: Allocation | None = None

    def solve(
        self, round_id: int, reports: Sequence[ClientReport], *, band: Hertz | None = None, curve: UtilityCurve | None = None
    ) -> Solution:
        """Return the assignments of the round, with ``band`` in all, or with the scenario's."""
        began_at = self._clock.monotonic()
        trusted = believed(standing(self._scenario, reports), reports)
        problem = AllocationProblem.of(self._within(band), trusted, curve=curve)
        # A re-allocation starts from the answer before it, if this process still has it: for speed only.
        before = None if band is None else self._last
        allocation = self._allocator.allocate(problem, seeds=self._seeds.child("allocation", str(round_id)), before=before)
        self._last = allocation
        channels = {r.client: r.channel for r in reports}
        return Solution(
            assignments=tuple(replace(a, channel=channels[a.client]) for a in allocation.assignments),
            method=allocation.method,
            violation=allocation.violation,
            gap=allocation.gap,
            objective=allocation.objective,
            upper_bound=allocation.upper_bound,
            claim=allocation.claim,
            tier=allocation.tier,
            sweeps=allocation.sweeps,
            notes=allocation.notes,
            solve_s=Second(self._clock.monotonic() - began_at),
        )

    def _within(self, band: Hertz | None) -> Scenario:
        if band is None:
            return self._scenario
        return structs.replace(self._scenario, air=structs.replace(self._scenario.air, bandwidth_hz=band))


def standing(scenario: Scenario, reports: Sequence[ClientReport]) -> Scenario:
    """Return the scenario with its clients where they stood when they measured: what the tap may hear depends on it."""
    at = {r.client: r.sounded_at for r in reports}
    places = ((c, scenario.air.place(c, at=at.get(ClientId(c.id), 0.0))) for c in scenario.clients)
    return structs.replace(scenario, clients=tuple(structs.replace(c, position=place) for c, place in places))


_solves: type[Solver] = AllocatorSolver


class Witness:
    """Says what happened, in the log and in one file per round."""

    def __init__(self, state_dir: Path, *, rules: Rules) -> None:
        """Leave the files in ``state_dir``."""
        self._state_dir = state_dir
        self._rules = rules

    def observe(self, before: State, after: State, event: Event) -> None:
        """Log one event that changed something; leave a file when it ended the round."""
        if isinstance(event, Died):
            _log_death(event)
        if after.curve is not None and after.curve != before.curve:
            _log_curve(after.curve)
        if isinstance(event, ChannelChanged):
            _log_channel(event)
        if isinstance(event, Solved):
            _log_solution(event)
        _log_sum(_sum_of(before), _sum_of(after), round_id=after.round_id)
        if (after.name, after.round_id) == (before.name, before.round_id):
            return
        log_event(_log, "phase_changed", phase=_DOING[after.name], round_id=after.round_id)
        if after.name == "open":
            log_event(_log, "round_opened", round_id=after.round_id, rounds=self._rules.rounds)
        if isinstance(after.phase, Closed):
            _log_end(after, accepted=after.phase.accepted, missing=after.phase.missing, failed_reason="")
            if after.phase.stopped:
                log_event(_log, "run_stopped", round_id=after.round_id, rounds=self._rules.rounds, reason=after.phase.stopped)
        if isinstance(after.phase, Failed):
            _log_end(after, accepted=(), missing=after.phase.missing, failed_reason=after.phase.reason)
        self.leave(after)

    def leave(self, state: State) -> None:
        """Write ``round-<n>.json`` if the round is over; writing it again changes nothing."""
        body = record(state, rules=self._rules)
        if body is None:
            return
        path = self._state_dir / f"round-{state.round_id}.json"
        write_durably(path, [json.dumps(body, indent=1, allow_nan=False).encode(), b"\n"], mode=0o644)


def _log_death(event: Died) -> None:
    silent_s = round(event.silent_s, 3)
    if event.member == OWNER:
        log_event(_log, "owner_died", level=logging.WARNING, silent_s=silent_s)
    else:
        log_event(_log, "client_died", level=logging.WARNING, client=event.member, silent_s=silent_s)


def _sum_of(state: State) -> Sum | None:
    return None if isinstance(state.phase, Gathering) or state.phase.round is None else state.phase.round.sum


def _log_sum(before: Sum | None, after: Sum | None, *, round_id: int) -> None:
    """Say which stage of a sum was closed, with what."""
    if after is None or before is None or after.stage is before.stage:
        return
    relay = after.relay
    match after.stage:
        case Stage.DEALS if relay.roster is not None:
            members = relay.roster.members
            left_out = sorted({ad.member for ad in relay.advertisements} - {*members})
            log_event(_log, "sum_roster_closed", round_id=round_id, members=list(members), left_out=left_out)
        case Stage.UPLOADS if relay.dealers is not None:
            log_event(_log, "sum_deals_closed", round_id=round_id, dealers=list(relay.dealers.dealers))
        case Stage.VOWS if relay.survivors is not None:
            log_event(_log, "sum_survivors_announced", round_id=round_id, survivors=list(relay.survivors.members))
        case Stage.DONE if relay.closed is not None:
            vows = [vow.member for vow in relay.closed.vows]
            log_event(_log, "sum_vows_closed", round_id=round_id, vows=vows, needed=needed(after))
        case _:
            pass


def _log_curve(curve: UtilityCurve) -> None:
    log_event(
        _log,
        "utility_told",
        offset=curve.offset,
        weight=curve.weight,
        shape=curve.shape,
        share_min=curve.share_min,
        points=[list(point) for point in curve.points],
    )


def _log_channel(event: ChannelChanged) -> None:
    log_event(
        _log,
        "channel_changed",
        round_id=event.round_id,
        client=event.client,
        sounded_at_s=event.channel.at,
        gain_main=event.channel.gain_main,
        gain_tap_bound=event.channel.gain_tap,
    )


def _log_solution(event: Solved) -> None:
    solution = event.solution
    for assignment in solution.assignments:
        log_event(_log, "gate_decided", round_id=event.round_id, client=assignment.client, **asdict(assignment.gate))
    log_event(
        _log,
        "assignments_solved",
        round_id=event.round_id,
        method=solution.method,
        seconds=solution.solve_s,
        objective=solution.objective,
        gap=solution.gap,
        claim=solution.claim,
        notes=list(solution.notes),
        order=event.order,
    )


def _log_end(state: State, *, accepted: Sequence[ClientId], missing: Mapping[ClientId, str], failed_reason: str) -> None:
    level = logging.ERROR if failed_reason else logging.INFO
    fields = {"round_id": state.round_id, "accepted": list(accepted), "missing": list(missing), "reasons": dict(missing)}
    log_event(_log, "round_failed" if failed_reason else "round_closed", level=level, **fields, failed_reason=failed_reason)
