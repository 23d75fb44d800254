"""What does the transport cost, beside named peers in the same run?

Every measured transfer takes turns with its peer, in an order that alternates, after one turn that does not count; ratios are of
medians, so that what else the machine does falls on both alike.
"""

import asyncio
import json
import os
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import grpc

from hushtune_common.clock import Clock
from hushtune_common.config import TimingConfig
from hushtune_common.errors import PeerLost
from hushtune_common.link.frame import chunk_blocks
from hushtune_common.messages import Digest, Listener, Role
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName
from hushtune_common.wire.endpoint import Kit, connect, ready
from hushtune_common.wire.listening import AirListener
from hushtune_common.wire.transfer import part_bytes, upload
from hushtune_server import pki
from hushtune_server.testbed.launch import versions
from hushtune_server.testbed.transport.bare import CALL, read_bare, write_bare
from hushtune_server.testbed.transport.child.app import air_scenario, secrecy_design
from hushtune_server.testbed.transport.death import measure_death
from hushtune_server.testbed.transport.memory import peak_bytes

PARTS = ("upload", "rounds", "giant", "death", "listener", "load")
UPLOAD_BYTES = 10_000_000
LIGHT_CLIENTS, LIGHT_ROUNDS = 20, 60
CALLS_PER_ROUND = 3
MANY_CLIENTS, MANY_ROUNDS = 200, 10
_STORE = "hushtune_server.testbed.transport.store"
_AIR = "hushtune_server.testbed.transport.child.app"
_LISTENED_CHUNKS = 8
_MESSAGE_EXTRA_BYTES = 2048
_CALL_BYTES = 200
_TIMING = TimingConfig()
_SEEDS = SeedTree(1)

Json = dict[str, Any]
Work = Callable[[], Awaitable[None]]


class Load(Protocol):
    """Plays a load and returns its figures."""

    def __call__(self, *, clients: int, rounds: int, kill: bool) -> Json:
        """See ``hushtune testbed load``."""
        ...


def measure(
    parts: Sequence[str], *, giant_bytes: int, repetitions: int, clock: Clock, tell: Callable[[str], None], load: Load
) -> Json:
    """Measure ``parts`` of `PARTS` and return the document; ``tell`` hears what is going on."""
    found: Json = {
        "date": clock.wall().isoformat(timespec="seconds"),
        "versions": versions(),
        "seed": _SEEDS.root,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    ways: dict[str, Callable[[Path], Json]] = {
        "upload": lambda folder: asyncio.run(_upload(folder, repetitions=repetitions, clock=clock)),
        "rounds": lambda folder: _rounds(folder, load=load, clock=clock),
        "giant": lambda folder: asyncio.run(_giant(folder, size=giant_bytes, clock=clock)),
        "death": lambda folder: measure_death(folder, clock=clock),
        "load": lambda _: load(clients=MANY_CLIENTS, rounds=MANY_ROUNDS, kill=False),
        "listener": lambda folder: asyncio.run(_listener(folder, repetitions=max(3, repetitions // 3), clock=clock)),
    }
    for part in parts:
        tell(f"measuring: {part}")
        with tempfile.TemporaryDirectory(prefix="hushtune-bench-") as folder:
            found[part] = ways[part](Path(folder))
    return found


async def _upload(folder: Path, *, repetitions: int, clock: Clock) -> Json:
    """Time uploads with a durable acknowledgement beside the bare peer."""
    _kits(folder, clock=clock)
    data = os.urandom(UPLOAD_BYTES)
    step = part_bytes(len(data))
    async with AsyncExitStack() as stack:
        quota = (repetitions + 2) * len(data)
        _, about = await stack.enter_async_context(_child((_STORE, "serve"), folder, {"quota_bytes": quota}))
        ours = await stack.enter_async_context(_channel(about["ours"], folder, role=Role.OWNER, own="client"))
        bare = await stack.enter_async_context(_channel(about["bare"], folder, role=Role.OWNER, own="client"))
        fresh = iter([index.to_bytes(8, "big") + data[8:] for index in range(repetitions + 1)])

        async def send() -> None:
            content = next(fresh)
            name = BlobName(prefix="uploads", digest=Digest.of(content), size=len(content))
            await upload(ours, name, content, clock=clock, seeds=_SEEDS, timing=_TIMING, attempts_max=1)

        async def send_bare() -> None:
            await write_bare(bare, data, part_bytes=step)

        seconds = await _in_turn({"ours": send, "bare": send_bare}, repetitions=repetitions, clock=clock)
    return {"bytes": len(data), "part_bytes": step, **_compared(seconds, "ours", "bare", size=len(data))}


def _rounds(folder: Path, *, load: Load, clock: Clock) -> Json:
    """Play control rounds, between two looks at how fast bare calls go; then once more with a coordinator that is killed."""
    _kits(folder, clock=clock)
    before = asyncio.run(_bare_rounds(folder, clock=clock))
    found = load(clients=LIGHT_CLIENTS, rounds=LIGHT_ROUNDS, kill=False)
    after = asyncio.run(_bare_rounds(folder, clock=clock))
    bare = 2.0 / (1.0 / before + 1.0 / after)
    killed = load(clients=LIGHT_CLIENTS, rounds=LIGHT_ROUNDS, kill=True)
    return {**found, "bare_rounds_per_s": round(bare, 2), "ratio": round(bare / found["rounds_per_s"], 2), "killed": killed}


async def _bare_rounds(folder: Path, *, clock: Clock) -> float:
    """Return how many rounds per second bare calls would make: three for each client, a report, an end, a settlement."""
    async with AsyncExitStack() as stack:
        _, about = await stack.enter_async_context(_child((_STORE, "serve"), folder, {"quota_bytes": 1}))
        ways = [_channel(about["bare"], folder, role=Role.OWNER, own="client") for _ in range(LIGHT_CLIENTS)]
        channels: list[Any] = [await stack.enter_async_context(way) for way in ways]
        calls = [channel.unary_unary(CALL) for channel in channels]
        began_at = clock.monotonic()
        for _ in range(CALLS_PER_ROUND * LIGHT_ROUNDS):
            await asyncio.gather(*(call(bytes(_CALL_BYTES)) for call in calls))
        return LIGHT_ROUNDS / (clock.monotonic() - began_at)


async def _giant(folder: Path, *, size: int, clock: Clock) -> Json:
    """Take a large blob from one process to another; return how large both became."""
    _kits(folder, clock=clock)
    async with _child((_STORE, "serve"), folder, {"quota_bytes": 2 * size}) as (receiver, about):
        order = {"size": size, "address": about["ours"]}
        async with _child((_STORE, "send"), folder, order) as (_, said):
            return {
                "bytes": size,
                "seconds": round(said["seconds"], 2),
                "mb_per_s": round(size / 1e6 / said["seconds"], 1),
                "sender_peak_bytes": said["peak_bytes"],
                "receiver_peak_bytes": peak_bytes(receiver.pid),
            }


async def _listener(folder: Path, *, repetitions: int, clock: Clock) -> Json:
    """Time what one listener hears: through noise, with nothing to compute, and as bare messages of the same length."""
    _kits(folder, clock=clock)
    secrecy, scenario = secrecy_design(), air_scenario()
    step = chunk_blocks(secrecy)
    soft_bytes = _LISTENED_CHUNKS * step * secrecy.codewords * secrecy.code_bits
    order = {
        "blocks": _LISTENED_CHUNKS * step,
        "messages": _LISTENED_CHUNKS,
        "message_bytes": soft_bytes // _LISTENED_CHUNKS + _MESSAGE_EXTRA_BYTES,
    }
    async with AsyncExitStack() as stack:
        _, about = await stack.enter_async_context(_child((_AIR,), folder, order))
        bare = await stack.enter_async_context(_channel(about["bare"], folder, role=Role.AIR, own="owner"))

        async def listen(name: str) -> Work:
            channel = await stack.enter_async_context(_channel(about[name], folder, role=Role.AIR, own="owner"))
            ears = AirListener(channel, scenario, listener=Listener.MAIN, clock=clock, seeds=_SEEDS)
            async with aclosing(ears.notices()) as notices:
                notice = await anext(notices)

            async def hear() -> None:
                async for _ in ears.receive(notice):
                    pass

            return hear

        async def read() -> None:
            await read_bare(bare)

        ways: Mapping[str, Work] = {"noisy": await listen("noisy"), "still": await listen("still"), "bare": read}
        seconds = await _in_turn(ways, repetitions=repetitions, clock=clock)
    return {
        "bytes": soft_bytes,
        "message_bytes": order["message_bytes"],
        "noisy": _compared(seconds, "noisy", "bare", size=soft_bytes),
        "still": _compared(seconds, "still", "bare", size=soft_bytes),
    }


async def _in_turn(ways: Mapping[str, Work], *, repetitions: int, clock: Clock) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repetitions + 1):
        for name in sorted(ways, reverse=bool(turn % 2)):
            began_at = clock.monotonic()
            await ways[name]()
            seconds[name].append(clock.monotonic() - began_at)
    return {name: values[1:] for name, values in seconds.items()}


def _compared(seconds: Mapping[str, Sequence[float]], name: str, peer: str, *, size: int) -> Json:
    own, other = median(seconds[name]), median(seconds[peer])
    return {
        "seconds": round(own, 4),
        "bare_seconds": round(other, 4),
        "ratio": round(own / other, 3),
        "mb_per_s": round(size / 1e6 / own, 1),
        "bare_mb_per_s": round(size / 1e6 / other, 1),
        "all_seconds": [round(value, 4) for value in seconds[name]],
        "all_bare_seconds": [round(value, 4) for value in seconds[peer]],
    }


def _kits(folder: Path, *, clock: Clock) -> None:
    pki.init(folder / "ca", clock=clock)
    for role in (Role.OWNER, Role.AIR, Role.CLIENT):
        pki.issue(folder / "ca", role=role, name=role.value, out=folder / "kits" / role.value, clock=clock)


@asynccontextmanager
async def _child(module: Sequence[str], folder: Path, order: Json) -> AsyncGenerator[tuple[asyncio.subprocess.Process, Json]]:
    """Have a process that serves, and its first words; it ends when its standard input does."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", *module, str(folder), stdin=PIPE, stdout=PIPE)
    try:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process was started without pipes")
        process.stdin.write(json.dumps(order).encode() + b"\n")
        await process.stdin.drain()
        line = await process.stdout.readline()
        if not line:
            raise PeerLost(f"{module[0]} ended with code {await process.wait()}")
        yield process, json.loads(line)
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 10.0)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def _channel(address: str, folder: Path, *, role: Role, own: str) -> AsyncGenerator[grpc.aio.Channel]:
    channel = connect(address, role=role, kit=Kit.load(folder / "kits" / own), timing=_TIMING)
    try:
        await ready(channel, address=address, role=role, timing=_TIMING)
        yield channel
    finally:
        await channel.close()
