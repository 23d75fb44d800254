"""Faults 1, 2 and 8: connections that are cut, replies that are lost, parts that are damaged."""

import hashlib
from collections.abc import Sequence

from hushtune_common.errors import DigestMismatch
from hushtune_common.messages import Digest, Role
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName
from hushtune_common.wire.endpoint import Kit, connect
from hushtune_common.wire.transfer import upload
from hushtune_server.testbed.chaos.case import Case, Finding, over, require_codes, require_counted_once
from hushtune_server.testbed.chaos.proxy import FaultProxy, Way
from hushtune_server.testbed.chaos.stage import RUN, Stage

_EIGHTHS = 7
_CUT_COSTS_BYTES = 4 << 20
"""What a cut may cost in bytes that are sent again, by the rule."""
_OVERHEAD = 1.02
"""Framing and encryption, and a handshake for each connection, are not bytes of the payload sent twice."""
_HANDSHAKE_BYTES = 8192
_LARGE_BYTES = 32 << 20
_SMALL_BYTES = 1 << 20
_SPARE_ATTEMPT = 8
"""The last attempt, which the client itself does not come to, for uploads that are made in its name beside it."""


async def _cut_uploads(stage: Stage, clients: Sequence[str], finding: Finding) -> None:
    (client,) = clients
    proxy = stage.proxy(client, "air")
    finding.done = f"cut the upload of {client} at every eighth of its frame, and one of {_LARGE_BYTES >> 20} MiB in its name"
    large = await _cut_large(stage, client, proxy)
    await stage.take_part(client)
    frame = await stage.heard(client, "frame_encoded")
    size, before, opened = int(frame["bytes_frame"]), proxy.carried(Way.UP), len(proxy.connections)
    proxy.cut_each_after(*[size // 8] * _EIGHTHS)
    cut_s = stage.clock.monotonic()
    await stage.heard(client, "frame_transmitted")
    finding.recovery_s = stage.clock.monotonic() - cut_s
    _require_frugal(finding, "frame", size, carried=proxy.carried(Way.UP) - before, cuts=len(proxy.connections) - opened)
    _require_frugal(finding, "large upload", _LARGE_BYTES, carried=large, cuts=_EIGHTHS)
    again = [(proxy.carried(Way.UP) - before) / size - 1.0, large / _LARGE_BYTES - 1.0]
    finding.happened = (
        f"both resumed {_EIGHTHS} times from the committed offset; sent again: {again[0]:.0%} of the frame's {size} bytes, "
        f"{again[1]:.0%} of the large upload's"
    )
    await over(stage, client)
    require_counted_once(stage, finding, client)
    require_codes(stage, finding, 0, client)


def _require_frugal(finding: Finding, what: str, size: int, *, carried: int, cuts: int) -> None:
    finding.check(f"{what}: cut {_EIGHTHS} times", cuts == _EIGHTHS, cuts)
    bound = size * _OVERHEAD + cuts * (_CUT_COSTS_BYTES + _HANDSHAKE_BYTES)
    finding.check(f"{what}: each byte once, and 4 MiB more per cut", size <= carried <= bound, f"{carried} bytes for {size}")


async def _cut_large(stage: Stage, client: str, proxy: FaultProxy) -> int:
    """Upload many commits' worth in the client's name, cut at every eighth; return the bytes that it took."""
    proxy.cut_each_after(*[_LARGE_BYTES // 8] * _EIGHTHS)
    before = proxy.carried(Way.UP)
    await _upload(stage, client, _LARGE_BYTES)
    return proxy.carried(Way.UP) - before


async def _upload(stage: Stage, client: str, size: int) -> None:
    """Upload bytes from a seed with the client's kit, over its own way to the air, by the loop that clients use."""
    data = hashlib.shake_256(client.encode()).digest(size)
    name = BlobName(prefix=f"frames/{RUN}/1/{client}/{_SPARE_ATTEMPT}", digest=Digest.of(data), size=size)
    timing = stage.scenario.timing
    channel = connect(stage.way(client, "air"), role=Role.AIR, kit=Kit.load(stage.run.kit(client)), timing=timing)
    try:
        seeds = SeedTree(stage.scenario.seed).child("chaos", "upload", client)
        attempts_max = stage.scenario.limits.attempts_max
        await upload(channel, name, data, clock=stage.clock, seeds=seeds, timing=timing, attempts_max=attempts_max)
    finally:
        await channel.close()


async def _lose_replies(stage: Stage, clients: Sequence[str], finding: Finding) -> None:
    (client,) = clients
    losing = {
        (client, "coordinator"): {"Join", "Report", "Complete"},
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
        await _upload(stage, client, _SMALL_BYTES)
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
        clients=1,
        play=_cut_uploads,
    ),
    Case(number=2, title="lose the acknowledgement", rule="same receipt; counted once", clients=1, play=_lose_replies),
    Case(
        number=8,
        title="corrupt a part",
        rule="refused by CRC, sent again; a lying digest ends the transfer",
        clients=1,
        play=_damage_parts,
    ),
)
