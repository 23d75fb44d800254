"""Faults 6 and 9: connections and processes that are silent, and others that are only slow."""

from collections.abc import Sequence

from hushtune_server.testbed.chaos.case import Case, Finding, over, require_codes, require_counted_once
from hushtune_server.testbed.chaos.proxy import Way
from hushtune_server.testbed.chaos.stage import Stage

_GRACE_S = 4.0
"""What a loaded machine may take beyond the bound to say what it has noticed."""


async def _go_silent(stage: Stage, clients: Sequence[str], finding: Finding) -> None:
    cut_off, stopped = clients
    idle_s = stage.scenario.timing.idle_s
    finding.done = f"stopped forwarding {cut_off}'s upload without closing it; SIGSTOP of {stopped} in training, later SIGCONT"
    proxy = stage.proxy(cut_off, "air")
    for client in clients:
        await stage.take_part(client)
    await stage.heard(stopped, "training_progressed")
    frozen_s = stage.freeze(stopped)
    size = int((await stage.heard(cut_off, "frame_encoded"))["bytes_frame"])
    proxy.weather[Way.UP].rate_bps = 600_000.0
    before, opened = proxy.carried(Way.UP), len(proxy.connections)
    await stage.until(lambda: proxy.carried(Way.UP) - before > size / 2, within_s=60.0, what="half of the upload")
    stalled_s = stage.clock.monotonic()
    proxy.freeze()
    half = proxy.carried(Way.UP)
    proxy.weather[Way.UP].rate_bps = None
    died = await stage.heard("coordinator", "client_died", client=stopped)
    noticed = died["heard_s"] - frozen_s
    finding.check("the stopped process was noticed within idle_s", noticed <= idle_s + _GRACE_S, f"{noticed:.1f} s")
    stage.thaw(stopped)
    await stage.until(lambda: len(proxy.connections) > opened, within_s=60.0, what="another connection")
    finding.recovery_s = proxy.connections[-1].opened_s - stalled_s
    found = f"{finding.recovery_s:.1f} s"
    finding.check("the silent connection was noticed within idle_s", finding.recovery_s <= idle_s + _GRACE_S, found)
    await stage.heard(cut_off, "frame_transmitted")
    later = proxy.carried(Way.UP) - half
    finding.check("the resumed upload took over where it stood", later < 0.9 * size, f"{later} of {size} bytes afterwards")
    await over(stage, cut_off, stopped)
    require_counted_once(stage, finding, cut_off)
    require_codes(stage, finding, 0, cut_off)
    came_back = len(stage.log(stopped).find("round_closed"))
    finding.check("the stopped process learned afterwards how the round ended", came_back == 1, stage.children[stopped].code)
    finding.happened = f"noticed after {finding.recovery_s:.1f} s (connection) and {noticed:.1f} s (process); the upload went on"
    finding.lost = f"{stopped}'s part of the round" if stopped in stage.record().get("missing", []) else "nothing"


async def _go_slowly(stage: Stage, clients: Sequence[str], finding: Finding) -> None:
    slow, stalled = clients
    idle_s = stage.scenario.timing.idle_s
    mischief = await stage.relay(stalled, "air")
    mischief.stall_after = 3
    size = int((await stage.heard("owner", "emulator_published"))["bytes_total"])
    proxy, rate_bps = stage.proxy(slow, "owner"), size / (2.5 * idle_s)
    proxy.weather[Way.DOWN].rate_bps = rate_bps
    finding.done = f"let {slow} fetch the emulator at {rate_bps / 1000:.0f} kB/s, and {stalled} send three parts and then none"
    for client in clients:
        await stage.take_part(client)
    await stage.until(lambda: mischief.stalled == 1, within_s=90.0, what="the stalled upload")
    stalled_s = stage.clock.monotonic()
    caller = f"hushtune://client/{stalled}"
    refused = await stage.heard("air", "call_refused", reason="DEADLINE_EXCEEDED", caller=caller)
    waited = refused["heard_s"] - stalled_s
    in_time = idle_s - _GRACE_S <= waited <= idle_s + _GRACE_S
    finding.check("the stalled upload was ended after idle_s", in_time, f"{waited:.1f} s")
    resumed = await stage.heard(stalled, "transfer_finished", kind="frame")
    finding.recovery_s = resumed["heard_s"] - stalled_s
    took = float((await stage.heard(slow, "transfer_finished", kind="emulator"))["seconds"])
    finding.check("the slow transfer took more than twice idle_s", took > 2 * idle_s, f"{took:.1f} s")
    lives = len(proxy.connections)
    finding.check("over one connection", lives == 1, f"{lives} connections")
    timed_out = stage.log("owner").find("call_refused", caller=f"hushtune://client/{slow}")
    finding.check("and was never timed out", not timed_out, timed_out)
    deaths = [e for e in stage.log("coordinator").find("client_died") if e["client"] in clients]
    finding.check("neither was taken for dead", not deaths, deaths)
    proxy.weather[Way.DOWN].rate_bps = None
    await over(stage, slow, stalled)
    require_counted_once(stage, finding, slow, stalled)
    require_codes(stage, finding, 0, slow, stalled)
    finding.happened = f"the slow transfer took {took:.0f} s in peace; the stalled one was ended after {waited:.1f} s and went on"


CASES = (
    Case(
        number=6,
        title="half-open connection, stopped process",
        rule="noticed within idle_s; the resumed upload takes over",
        clients=2,
        play=_go_silent,
    ),
    Case(
        number=9,
        title="slow but moving client, stalled client",
        rule="the first is never timed out, the second is, after idle_s",
        clients=2,
        play=_go_slowly,
    ),
)
