"""Faults 6 and 9: connections and processes that are silent, and others that are only slow."""

import asyncio
from collections.abc import Sequence

from hushtune_common.messages import Digest
from hushtune_common.store.blobs import BlobName
from hushtune_common.wire.transfer import BACKOFF_BASE_S
from hushtune_server.owner.catalog import PREFIX
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
from hushtune_server.testbed.chaos.injecting import fetch_as, upload_as
from hushtune_server.testbed.chaos.proxy import Way
from hushtune_server.testbed.chaos.stage import Stage

_DIALLING_S = 0.2
"""How long gRPC waits before it dials anew."""
_UPLOAD_BPS = 600_000.0
_SLOW_BPS = 65_536.0
"""A frame takes more than twice ``idle_s`` at this rate."""
_LEAST_BYTES = 64 << 10
"""What the slowest link that works carries in half of ``idle_s``."""


async def _go_silent(stage: Stage, clients: Sequence[str], finding: Finding) -> None:
    cut_off, stopped = clients
    idle_s = stage.scenario.timing.idle_s
    finding.done = f"stopped forwarding {cut_off}'s upload without closing it; SIGSTOP of {stopped} in training, later SIGCONT"
    proxy = stage.proxy(cut_off, "air")
    hold_frame(stage, cut_off)
    for client in clients:
        await stage.take_part(client)
    await stage.heard(stopped, "training_progressed")
    frozen_s = stage.freeze(stopped)
    size, before = await frame_held(stage, cut_off)
    proxy.weather[Way.UP].rate_bps = _UPLOAD_BPS
    opened = len(proxy.connections)
    await stage.until(lambda: proxy.carried(Way.UP) - before > size / 2, within_s=60.0, what="half of the upload")
    stalled_s = stage.clock.monotonic()
    proxy.freeze()
    half = proxy.carried(Way.UP)
    proxy.weather[Way.UP].rate_bps = None
    died = await stage.heard("coordinator", "client_died", client=stopped)
    noticed = died["heard_s"] - frozen_s
    finding.check("the stopped process was noticed within idle_s", noticed <= idle_s + LATE_S, f"{noticed:.1f} s")
    stage.thaw(stopped)
    await stage.until(lambda: len(proxy.connections) > opened, within_s=60.0, what="another connection")
    finding.recovery_s = proxy.connections[-1].opened_s - stalled_s
    bound_s = idle_s + BACKOFF_BASE_S + _DIALLING_S + LATE_S
    found = f"{finding.recovery_s:.1f} s"
    finding.check("the silent connection was noticed within idle_s", finding.recovery_s <= bound_s, found)
    await stage.heard(cut_off, "frame_transmitted")
    later, bound = proxy.carried(Way.UP) - half, left_at_most(size, arrived=half - before)
    finding.check("the resumed upload took over where it stood", later <= bound, f"{later} of {size} bytes, at most {bound}")
    await over(stage, cut_off, stopped)
    require_counted_once(stage, finding, cut_off)
    require_codes(stage, finding, 0, cut_off)
    came_back = len(stage.log(stopped).find("round_closed"))
    finding.check("the stopped process learned afterwards how the round ended", came_back == 1, stage.children[stopped].code)
    finding.happened = f"noticed after {finding.recovery_s:.1f} s (connection) and {noticed:.1f} s (process); the upload went on"
    finding.lost = f"{stopped}'s part of the round" if stopped in stage.record().get("missing", []) else "nothing"


async def _go_slowly(stage: Stage, clients: Sequence[str], finding: Finding) -> None:
    slow, stalled = clients
    published = await stage.heard("owner", "emulator_published")
    emulator = BlobName(prefix=PREFIX, digest=Digest.from_hex(published["digest"]), size=int(published["bytes_total"]))
    rate_bps = emulator.size / (2.5 * stage.scenario.timing.idle_s)
    stage.proxy(slow, "owner").weather[Way.DOWN].rate_bps = rate_bps
    stage.proxy(slow, "air").weather[Way.UP].rate_bps = _SLOW_BPS
    (await stage.relay(stalled, "air")).stall_after = 3
    finding.done = (
        f"let {slow} fetch the emulator at {rate_bps / 1000:.0f} kB/s and send its frame at {_SLOW_BPS / 1000:.0f}, moved "
        f"{_LEAST_BYTES >> 10} KiB per idle_s / 2 both ways in its name, and let {stalled} send three parts and then none"
    )
    for client in clients:
        await stage.take_part(client)
    slowest, waited, took = await asyncio.gather(
        _crawl(stage, slow, emulator, finding), _stall(stage, stalled, finding), _take_long(stage, slow, finding)
    )
    deaths = [e for e in stage.log("coordinator").find("client_died") if e["client"] in clients]
    finding.check("neither was taken for dead", not deaths, deaths)
    await over(stage, slow, stalled)
    require_counted_once(stage, finding, slow, stalled)
    require_codes(stage, finding, 0, slow, stalled)
    finding.happened = (
        f"emulator {took[0]:.0f} s, frame {took[1]:.0f} s, the slowest {slowest:.0f} s each way, every one over one connection; "
        f"the stalled upload was ended after {waited:.1f} s and went on"
    )


async def _take_long(stage: Stage, client: str, finding: Finding) -> tuple[float, float]:
    """Check that a client took its time over both of its transfers, and nobody minded; return the seconds."""
    idle_s = stage.scenario.timing.idle_s
    seconds: list[float] = []
    for kind, server in (("emulator", "owner"), ("frame", "air")):
        took = float((await stage.heard(client, "transfer_finished", kind=kind, within_s=180.0))["seconds"])
        finding.check(f"the slow {kind} took more than twice idle_s", took > 2 * idle_s, f"{took:.1f} s")
        lives = len(stage.proxy(client, server).connections)
        finding.check("over one connection", lives == 1, f"{lives} connections")
        timed_out = stage.log(server).find("call_refused", caller=f"hushtune://client/{client}")
        finding.check("and was never timed out", not timed_out, timed_out)
        seconds.append(took)
    return seconds[0], seconds[1]


async def _crawl(stage: Stage, client: str, emulator: BlobName, finding: Finding) -> float:
    """Move bytes at the least rate both ways for more than twice ``idle_s``; return how long it took."""
    idle_s = stage.scenario.timing.idle_s
    rate_bps = _LEAST_BYTES / (idle_s / 2)
    size = round(2.2 * idle_s * rate_bps)
    up, to_air = await stage.side_way("air", Way.UP, rate_bps=rate_bps)
    down, to_owner = await stage.side_way("owner", Way.DOWN, rate_bps=rate_bps)
    began_s = stage.clock.monotonic()
    await asyncio.gather(
        upload_as(stage, client, size, address=to_air), fetch_as(stage, client, emulator, size, address=to_owner)
    )
    took = stage.clock.monotonic() - began_s
    finding.check("the slowest transfers took more than twice idle_s", took > 2 * idle_s, f"{took:.1f} s")
    for way, proxy in (("up", up), ("down", down)):
        lives = len(proxy.connections)
        finding.check(f"the slowest link {way} was never cut", lives == 1, f"{lives} connections")
    return took


async def _stall(stage: Stage, client: str, finding: Finding) -> float:
    """Check that an upload that stands still is ended after ``idle_s``, and goes on; return after how long it was."""
    idle_s, mischief = stage.scenario.timing.idle_s, stage.relays[client, "air"].mischief
    await stage.until(lambda: mischief.stalled == 1, within_s=90.0, what="the stalled upload")
    stalled_s = stage.clock.monotonic()
    caller = f"hushtune://client/{client}"
    refused = await stage.heard("air", "call_refused", reason="DEADLINE_EXCEEDED", caller=caller)
    waited = refused["heard_s"] - stalled_s
    in_time = idle_s - LATE_S <= waited <= idle_s + LATE_S
    finding.check("the stalled upload was ended after idle_s", in_time, f"{waited:.1f} s")
    resumed = await stage.heard(client, "transfer_finished", kind="frame")
    finding.recovery_s = resumed["heard_s"] - stalled_s
    return waited


CASES = (
    Case(
        number=6,
        title="half-open connection, stopped process",
        rule="noticed within idle_s; the resumed upload takes over",
        rows=("a connection or a process that is silent and not closed",),
        clients=2,
        play=_go_silent,
    ),
    Case(
        number=9,
        title="slow but moving client, stalled client",
        rule="the first is never timed out, the second is, after idle_s",
        rows=("a link that is slow, and a client that stalls",),
        clients=2,
        play=_go_slowly,
    ),
)
