"""In which runs are the ten faults played, and what came of them? Faults that do not disturb each other share a run."""

import asyncio
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from hushtune_common.clock import Clock
from hushtune_common.errors import ConfigError, HushtuneError
from hushtune_server.testbed.chaos import cutting, identity, killing, waiting
from hushtune_server.testbed.chaos.case import Case, Finding, over
from hushtune_server.testbed.chaos.small import PATIENT_IDLE_S, TIMING, write_small
from hushtune_server.testbed.chaos.stage import SERVERS, Event, Stage, Tell, opened

CASES: tuple[Case, ...] = (*cutting.CASES, *killing.CASES, *waiting.CASES, *identity.CASES)
_CASES: Mapping[int, Case] = {case.number: case for case in CASES}
FAULTS = tuple(sorted(_CASES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """Faults that happen to one run, each to clients of its own, or to the coordinator."""

    name: str
    faults: tuple[int, ...]
    rounds: int = 1
    idle_s: float = TIMING.idle_s
    ahead_s: float = 0.0
    compared: bool = False
    """Whether the same run is played without a fault before."""


ACTS = (
    Act(name="bytes", faults=(1, 2, 8)),
    Act(name="clients", faults=(3, 5), idle_s=PATIENT_IDLE_S),
    Act(name="coordinator", faults=(4,), rounds=2, idle_s=PATIENT_IDLE_S, compared=True),
    Act(name="silence", faults=(6, 9)),
    Act(name="identity", faults=(7, 10), ahead_s=identity.AHEAD_S),
)


def title_of(number: int) -> str:
    """Return what a fault is, in words."""
    return _CASES[number].title


async def run_suite(folder: Path, *, only: Collection[int], clock: Clock, tell: Tell) -> list[Finding]:
    """Play the faults ``only`` below ``folder`` and return a finding for each, in order; ``tell`` hears how it goes."""
    unknown = sorted({*only} - {*FAULTS})
    if unknown or not only:
        raise ConfigError("--only", f"faults are numbered {FAULTS[0]} to {FAULTS[-1]}, got {unknown or 'none'}")
    findings: list[Finding] = []
    for act in ACTS:
        cases = [_CASES[number] for number in act.faults if number in only]
        if cases:
            findings += await _play(act, cases, folder, clock=clock, tell=tell)
    return sorted(findings, key=lambda finding: finding.number)


async def _play(act: Act, cases: Sequence[Case], folder: Path, *, clock: Clock, tell: Tell) -> list[Finding]:
    count = max(1, sum(case.clients for case in cases))
    file, scenario = write_small(folder / act.name, clients=count, rounds=act.rounds, idle_s=act.idle_s)
    tell(f"{act.name}: faults {', '.join(str(case.number) for case in cases)}; {count} clients, {act.rounds} round(s)")
    reference: Mapping[int, Event] = {}
    if act.compared:
        async with opened(folder / act.name, file, scenario, clock=clock, tell=tell) as stage:
            reference = await _undisturbed(stage, act)
    async with opened(folder / act.name, file, scenario, clock=clock, tell=tell, ahead_s=act.ahead_s) as stage:
        stage.reference = reference
        await _servers(stage)
        findings = [case.finding() for case in cases]
        ends = list(accumulate(case.clients for case in cases))
        own = [stage.clients[end - case.clients : end] for case, end in zip(cases, ends, strict=True)]
        await asyncio.gather(*(_one(stage, *of) for of in zip(cases, own, findings, strict=True)))
        return findings


async def _one(stage: Stage, case: Case, clients: Sequence[str], finding: Finding) -> None:
    """Play one fault; what goes wrong while it is played is the finding."""
    began_s = stage.clock.monotonic()
    try:
        await case.play(stage, clients, finding)
    except (HushtuneError, OSError) as error:
        finding.check("played to the end", held=False, found=f"{type(error).__name__}: {error}")
    finding.wall_s = stage.clock.monotonic() - began_s
    stage.tell(f"fault {case.number}, {case.title}: {'passed' if finding.passed else 'FAILED'} after {finding.wall_s:.0f} s")
    for check in finding.checks:
        if not check.held:
            stage.tell(f"    not so: {check.claim} (found: {check.found})")


async def _servers(stage: Stage) -> None:
    """Start what a run needs beside its clients."""
    for name in SERVERS:
        await stage.serve(name)


async def _undisturbed(stage: Stage, act: Act) -> Mapping[int, Event]:
    stage.tell("first without a fault, for comparison")
    await _servers(stage)
    for client in stage.clients:
        await stage.take_part(client)
    await over(stage, *stage.clients)
    return {round_id: stage.record(round_id) for round_id in range(1, act.rounds + 1)}


def to_json(
    findings: Sequence[Finding], *, timing: Any, versions: Mapping[str, str], wall_s: float, load: Sequence[float]
) -> dict[str, Any]:
    """Return what a run of the suite found, as plain values; ``load`` is the machine's, before and after."""
    return {
        "version": 1,
        "passed": all(finding.passed for finding in findings),
        "wall_s": round(wall_s, 1),
        "timing_s": {
            "connect": timing.connect_s,
            "idle": timing.idle_s,
            "idle_where_killed": PATIENT_IDLE_S,
            "round": timing.round_s,
        },
        "versions": dict(versions),
        "cores": os.cpu_count(),
        "load_average": [round(value, 1) for value in load],
        "faults": [finding.to_json() for finding in findings],
    }
