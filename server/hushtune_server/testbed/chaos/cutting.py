"""Faults 1, 2 and 8: connections that are cut, replies that are lost, parts that are damaged."""

from collections.abc import Sequence

from hushtune_common.errors import DigestMismatch
from hushtune_common.messages import Digest
from hushtune_common.wire.transfer import part_bytes
from hushtune_server.testbed.chaos.case import (
    HANDSHAKE_BYTES,
    OVERHEAD,
    Case,
    Finding,
    frame_held,
    hold_frame,
    over,
    require_codes,
    require_counted_once,
)
from hushtune_server.testbed.chaos.injecting import upload_as
from hushtune_server.testbed.chaos.proxy import FaultProxy, Way
from hushtune_server.testbed.chaos.stage import Stage

_EIGHTHS = 7
_CUT_COSTS_BYTES = 4 << 20
"""What a cut may cost in bytes that are sent again, by the rule; the distance of the cuts bounds it further."""
_LARGE_BYTES = 32 << 20
_SMALL_BYTES = 1 << 20


async def _cut_uploads(stage: Stage, clients: Sequence[str], finding: Finding) -> None:
    (client,) = clients
    proxy = stage.proxy(client, "air")
    finding.done = f"cut the upload of {client} at every eighth of its frame, and one of {_LARGE_BYTES >> 20} MiB in its name"
    large = await _cut_large(stage, client, proxy)
    hold_frame(stage, client)
    await stage.take_part(client)
    size, before = await frame_held(stage, client)
    made = proxy.cuts_made
    proxy.cut_each_after(*[size // 8] * _EIGHTHS)
    proxy.weather[Way.UP].rate_bps = None
    cut_s = stage.clock.monotonic()
    await stage.heard(client, "frame_transmitted")
    finding.recovery_s = stage.clock.monotonic() - cut_s
    carried = proxy.carried(Way.UP) - before
    cuts = proxy.cuts_made - made
    finding.check(f"frame: cut {_EIGHTHS} times", cuts == _EIGHTHS, cuts)
    _require_frugal(finding, "frame", size, carried=carried)
    _require_frugal(finding, "large upload", _LARGE_BYTES, carried=large)
    finding.happened = (
        f"both resumed {_EIGHTHS} times from the committed offset; sent again: {carried / size - 1.0:.0%} of the frame's {size} "
        f"bytes, {large / _LARGE_BYTES - 1.0:.0%} of the large upload's"
    )
    await over(stage, client)
    require_counted_once(stage, finding, client)
    require_codes(stage, finding, 0, client)


def _require_frugal(finding: Finding, what: str, size: int, *, carried: int) -> None:
    """Check that a cut cost no more than the part that was being received and what was on its way.

    Two legs are on their way at most, and legs at most double: that is two thirds of what came since the last cut.
    """
    on_its_way = min(_CUT_COSTS_BYTES, size // 8 * 2 // 3)
    bound = round(size * OVERHEAD) + _EIGHTHS * (on_its_way + part_bytes(size) + HANDSHAKE_BYTES)
    claim = f"{what}: each byte once, and at most {(bound - size) / size:.0%} more"
    finding.check(claim, carried <= bound, f"{carried} bytes for {size}")


async def _cut_large(stage: Stage, client: str, proxy: FaultProxy) -> int:
    """Upload many commits' worth in the client's name, cut at every eighth; return the bytes that it took."""
    proxy.cut_each_after(*[_LARGE_BYTES // 8] * _EIGHTHS)
    before = proxy.carried(Way.UP)
    await upload_as(stage, client, _LARGE_BYTES)
    return proxy.carried(Way.UP) - before


async def _lose_replies(stage: Stage, clients: Sequence[str], finding: Finding) -> None:
    (client,) = clients
    losing = {
        (client, "coordinator"): {"Join", "Report", "AskToSend", "Complete"},
        (client, "air"): {"Sound", "QueryWriteStatus", "Write", "Transmit"},
        ("owner", "air"): {"Acknowledge"},
        ("owner", "coordinator"): {"Settle"},
    }
    finding.done = "lost the first reply to " + ", ".join(sorted(m for methods in losing.values() for m in methods))
    mischief = {way: stage.relays[way].mischief for way in losing if way in stage.relays}
    for way in losing:
        if way not in mischief:
            mischief[way] = await stage.relay(*way)
        mischief[way].lose_replies |= losing[way]
        stage.proxy(*way).cut()  # what was connected before comes back through the relay
    began_s = stage.clock.monotonic()
    await stage.take_part(client)
    await over(stage, client)
    for way, methods in losing.items():
        calls, lost = mischief[way].calls, mischief[way].replies_lost
        finding.check(f"{way[0]} to {way[1]}: every reply was lost once", set(lost) >= methods, lost)
        # Whether a write has arrived is asked for, not tried by writing once more.
        again = {m: calls.count("QueryWriteStatus" if m == "Write" else m) for m in methods}
        finding.check(f"{way[0]} to {way[1]}: each was asked again", all(n >= 2 for n in again.values()), again)
    carried = stage.log("air").find("frame_carried", client=client)
    keys = [(e["round_id"], e["attempt"]) for e in carried]
    finding.check("each attempt was on air once", len(keys) == len(set(keys)) >= 1, keys)
    missing = [e["missing"] for e in stage.log(client).find("frame_transmitted")]
    whole = len(missing) == len(carried) and missing[-1:] == [0]
    finding.check("the same receipt came the second time", whole, f"blocks missing after each attempt: {missing}")
    require_counted_once(stage, finding, client)
    require_codes(stage, finding, 0, client)
    finding.happened = f"every call was made again and answered as before; {client} was counted once"
    finding.wall_s = stage.clock.monotonic() - began_s


async def _damage_parts(stage: Stage, clients: Sequence[str], finding: Finding) -> None:
    (client,) = clients
    mischief = await stage.relay(client, "air")
    finding.done = (
        f"damaged two parts of {client}'s frame beneath TLS, then a byte of its TLS stream; "
        f"uploaded {_SMALL_BYTES >> 20} MiB under a lying digest"
    )
    await _lie(stage, client, finding)
    mischief.damage_parts = 2
    await stage.take_part(client)
    caller = f"hushtune://client/{client}"
    await stage.heard("air", "call_refused", count=2, reason="PART_CORRUPT", caller=caller)
    damaged_s = stage.clock.monotonic()
    stage.proxy(client, "air").damage_next(Way.UP)
    await stage.heard(client, "frame_transmitted")
    finding.recovery_s = stage.clock.monotonic() - damaged_s
    refused = len(stage.log("air").find("call_refused", reason="PART_CORRUPT", caller=caller))
    finding.check("each damaged part was refused by its checksum", refused == mischief.parts_damaged == 2, refused)
    lives = len(stage.proxy(client, "air").connections)
    finding.check("the damaged TLS stream ended its connection, and another one took over", lives >= 2, f"{lives} connections")
    await over(stage, client)
    require_counted_once(stage, finding, client)
    require_codes(stage, finding, 0, client)
    finding.happened = "refused by CRC-32 and sent again; TLS ended the damaged connection; the lying digest ended its transfer"


async def _lie(stage: Stage, client: str, finding: Finding) -> None:
    """Let an upload arrive under the name of other bytes: it is refused, tried from the start once more, and given up."""
    mischief = stage.relays[client, "air"].mischief
    mischief.other_digest = Digest.of(b"other bytes").hex.encode()
    writes = mischief.calls.count("Write")
    try:
        await upload_as(stage, client, _SMALL_BYTES)
        finding.check("a lying digest ends the transfer", held=False, found="accepted")
    except DigestMismatch as error:
        tries = mischief.calls.count("Write") - writes
        finding.check("a lying digest ends the transfer, after one more try from zero", tries == 2, f"{tries} tries: {error}")
    finally:
        mischief.other_digest = b""


CASES = (
    Case(
        number=1,
        title="cut the upload at every 1/8",
        rule="resumes from the committed offset; each byte sent at most once plus 4 MiB per cut",
        rows=("a connection that is cut in an upload, again and again",),
        clients=1,
        play=_cut_uploads,
    ),
    Case(
        number=2,
        title="lose the acknowledgement",
        rule="same receipt; counted once",
        rows=("a reply that is lost",),
        clients=1,
        play=_lose_replies,
    ),
    Case(
        number=8,
        title="corrupt a part",
        rule="refused by CRC, sent again; a lying digest ends the transfer",
        rows=("a part that was damaged",),
        clients=1,
        play=_damage_parts,
    ),
)
