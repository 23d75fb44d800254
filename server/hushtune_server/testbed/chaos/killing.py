"""Faults 3, 4 and 5: processes that are killed, and others that are started again in their place."""

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from hushtune_common.errors import ScenarioMismatch
from hushtune_server.testbed.chaos.case import (
    LATE_S,
    Case,
    Finding,
    frame_held,
    hold_frame,
    left_at_most,
    over,
    require_codes,
    require_counted_once,
)
from hushtune_server.testbed.chaos.proxy import Way
from hushtune_server.testbed.chaos.stage import SERVERS, Stage

_CHANGED = "training.epochs=9"
_UPLOAD_BPS = 600_000.0
_PHASES: Mapping[str, str] = {
    "gathering": "waiting for clients",
    "open": "waiting for reports",
    "solving": "sharing out resources",
    "assigned": "clients are training",
    "settling": "collecting updates",
    "concluding": "waiting for the owner to conclude",
    "closed": "round closed",
}
"""The coordinator's states by what it logs when it enters them."""
_SAME = ("run", "state", "failed_reason", "last", "stopped", "accepted", "missing", "reasons", "died", "withdrawn", "assignments")


async def _kill_clients(stage: Stage, clients: Sequence[str], finding: Finding) -> None:
    training, uploading, gone = clients
    finding.done = f"SIGKILL of {training} in training and of {uploading} in its upload, both started again; of {gone} for good"
    proxy = stage.proxy(uploading, "air")
    hold_frame(stage, uploading)
    for client in clients:
        await stage.take_part(client)
    await stage.heard(gone, "training_progressed")
    await stage.kill(gone)
    await stage.heard(training, "training_progressed")
    killed_s = await stage.kill(training)
    await stage.take_part(training)
    size, before = await frame_held(stage, uploading)
    proxy.weather[Way.UP].rate_bps = _UPLOAD_BPS
    await stage.until(lambda: proxy.carried(Way.UP) - before > size / 2, within_s=60.0, what="half of the upload")
    hold_frame(stage, uploading)
    await stage.clock.sleep(LATE_S)  # a connection that breaks takes with it what has come and was not looked at yet
    half, lives = proxy.carried(Way.UP), len(proxy.connections)
    await stage.kill(uploading)
    await stage.take_part(uploading)
    proxy.weather[Way.UP].rate_bps = None
    joined = await stage.heard(training, "run_joined", restarted=True)
    finding.recovery_s = joined["heard_s"] - killed_s
    await stage.heard(uploading, "frame_transmitted")
    later = sum(c.carried[Way.UP] for c in proxy.connections[lives:])  # the dead one's kernel had some left to send, too
    await over(stage, training, uploading)
    require_counted_once(stage, finding, training, uploading)
    require_codes(stage, finding, 0, training, uploading)
    record = stage.record()
    finding.check("the round closed without the one that stayed away", gone not in record.get("accepted", [gone]))
    why = (record.get("reasons") or {}).get(gone, "")
    finding.check("and says why", why.startswith("died"), why)
    trained = len(stage.log(uploading).find("training_finished"))
    finding.check("what was trained was not trained again", trained == 1, trained)
    reused = len(stage.log(uploading).find("frame_reused"))
    finding.check("what was coded was not coded again", reused == 1, reused)
    bound = left_at_most(size, arrived=half - before)
    finding.check("the upload went on from what had arrived", later <= bound, f"{later} of {size} bytes, at most {bound}")
    finding.happened = f"both went on from their journals; {later / size:.0%} of the frame was left to send; {gone}: {why}"
    finding.lost = "the steps that were being trained"


async def _kill_coordinator(stage: Stage, clients: Sequence[str], finding: Finding) -> None:
    finding.done = "SIGKILL of the coordinator in " + ", ".join(_PHASES) + " (round 1), each time started again"
    undisturbed = stage.reference
    recoveries: list[float] = []
    await _kill_when(stage, _PHASES["gathering"], recoveries)
    for client in clients:
        await stage.take_part(client)
    for phase in list(_PHASES.values())[1:]:
        await _kill_when(stage, phase, recoveries)
    await over(stage, *clients)
    finding.recovery_s = max(recoveries)
    for round_id in (1, 2):
        require_counted_once(stage, finding, *clients, round_id=round_id)
        found, wanted = _outcome(stage.record(round_id)), _outcome(undisturbed.get(round_id, {}))
        differing = [name for name in _SAME if found[name] != wanted[name]]
        finding.check(
            f"round {round_id} ended as the undisturbed run's did", not differing and undisturbed, differing or "the same"
        )
    require_codes(stage, finding, 0, "coordinator", "owner", *clients)
    finding.happened = f"killed {len(recoveries)} times, served again after at most {max(recoveries):.1f} s, ended the same"


async def _kill_when(stage: Stage, phase: str, recoveries: list[float]) -> None:
    """Kill the coordinator as soon as it says that it entered a state, and start it again."""
    await stage.heard("coordinator", "phase_changed", phase=phase)
    killed_s = await stage.kill("coordinator")
    await stage.serve("coordinator")
    recoveries.append(stage.clock.monotonic() - killed_s)
    stage.tell(f"coordinator killed while {phase}, back after {recoveries[-1]:.1f} s")


def _outcome(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record.get(name) for name in _SAME}


async def _change_scenario(stage: Stage, clients: Sequence[str], finding: Finding) -> None:
    (client,) = clients
    changed = {name: f"{name}-changed" for name in (client, *SERVERS)}
    finding.done = (
        f"killed {client} in training, started it again, and a copy of it with {_CHANGED}; after the run, each server too"
    )
    await stage.take_part(client)
    await stage.heard(client, "training_progressed")
    killed_s = await stage.kill(client)
    await asyncio.to_thread(shutil.copytree, stage.run.state(client), stage.run.state(changed[client]))
    await stage.take_part(client)
    await stage.take_part(client, _CHANGED, called=changed.pop(client))
    await stage.ended(f"{client}-changed")
    joined = await stage.heard(client, "run_joined", restarted=True)
    finding.recovery_s = joined["heard_s"] - killed_s
    await over(stage, client)
    require_counted_once(stage, finding, client)
    require_codes(stage, finding, 0, client)
    await stage.stop("air")
    for name, called in changed.items():
        await stage.start_server(name, _CHANGED, called=called)
    await stage.ended(*changed.values(), within_s=60.0)
    changed[client] = f"{client}-changed"
    require_codes(stage, finding, ScenarioMismatch.exit_code, *changed.values())
    for called in changed.values():
        _require_said(stage, finding, called)
    finding.happened = (
        f"each ended with code {ScenarioMismatch.exit_code} and one line; with the right scenario the client went on"
    )


def _require_said(stage: Stage, finding: Finding, name: str) -> None:
    lines = [line for line in stage.words(name).splitlines() if line.startswith("hushtune")]
    said = lines[-1] if lines else ""
    finding.check(f"{name} says that it is another scenario", "scenario" in said, said)


CASES = (
    Case(
        number=3,
        title="SIGKILL of clients",
        rule="restarts from its journal; the round closes with or without it",
        rows=("a client that was killed",),
        clients=3,
        play=_kill_clients,
    ),
    Case(
        number=4,
        title="SIGKILL of the coordinator in each state",
        rule="same closed state as an undisturbed run",
        rows=("a coordinator that was killed",),
        clients=2,
        play=_kill_coordinator,
    ),
    Case(
        number=5,
        title="restart with a changed scenario",
        rule="refused by digest, exit code says so",
        rows=("a process that is started with another scenario",),
        clients=1,
        play=_change_scenario,
    ),
)
