"""How fast do blobs travel, beside a bare stream of the same bytes?

``python benchmarks/blobs.py [--size-mb 100] [--json]``: two processes, loopback, mutual TLS. Three transfers take turns: a bare
``grpc.aio`` stream with the same part size and nothing else; our download (CRC-32 and SHA-256 checked, written to disk, durable);
our upload (the same, acknowledged when durable). Medians over the repetitions, after one that does not count.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from hushtune_common.clock import SystemClock
from hushtune_common.config import TimingConfig
from hushtune_common.messages import Caller, Digest, Role
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.wire import transfer
from hushtune_common.wire.endpoint import Kit, connect, ready, serve
from hushtune_server import pki

CLOCK = SystemClock()
TIMING = TimingConfig()
BARE = "/hushtune.bench.Bare/Read"


def main() -> None:
    """Run the benchmark, or with ``--serve`` its other process."""
    parser = argparse.ArgumentParser(description="Throughput of blobs beside a bare gRPC stream.")
    parser.add_argument("--size-mb", type=int, default=100, help="size of the blob in megabytes (10^6 bytes)")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = given.size_mb * 1_000_000
    if given.serve:
        asyncio.run(_serve(given.serve, size=size, repetitions=given.repetitions))
        return
    with tempfile.TemporaryDirectory(prefix="hushtune-bench-") as folder:
        seconds = _measure(Path(folder), size=size, repetitions=given.repetitions)
    _show(seconds, size=size, as_json=given.json)


def _measure(folder: Path, *, size: int, repetitions: int) -> dict[str, list[float]]:
    pki.init(folder / "ca", clock=CLOCK)
    for role in (Role.OWNER, Role.CLIENT):
        pki.issue(folder / "ca", role=role, name=str(role), out=folder / role, clock=CLOCK)
    command = [sys.executable, __file__, "--serve", str(folder), "--size-mb", str(size // 1_000_000)]
    command += ["--repetitions", str(repetitions)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            about = json.loads(server.stdout.readline())
            return asyncio.run(_client(folder, about, repetitions=repetitions))
        finally:
            server.terminate()


async def _serve(folder: Path, *, size: int, repetitions: int) -> None:
    kit = Kit.load(folder / "owner")
    store = BlobStore(folder / "served", quota_bytes=size * (repetitions + 3))
    data = os.urandom(size)
    name = store.put("emulators", data)
    service = transfer.BlobsService(store, may_read=_anyone, may_write=_anyone, size_max=size)
    ours = await serve(
        [transfer.register_blobs(service)],
        names=["hushtune.v1.Blobs"],
        listen="127.0.0.1:0",
        kit=kit,
        clock=CLOCK,
        timing=TIMING,
    )
    bare, port = await _bare_server(kit, data)
    print(json.dumps({"name": name.text, "ours": ours.address, "bare": f"127.0.0.1:{port}"}), flush=True)
    with suppress(asyncio.CancelledError):
        await bare.wait_for_termination()


def _anyone(caller: Caller, name: BlobName) -> bool:
    return True


async def _bare_server(kit: Kit, data: bytes) -> tuple[grpc.aio.Server, int]:
    step = transfer.part_bytes(len(data))
    parts = [data[start : start + step] for start in range(0, len(data), step)]

    async def read(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    server = grpc.aio.server()
    _, service, method = BARE.split("/")
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {method: grpc.unary_stream_rpc_method_handler(read)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    credentials = grpc.ssl_server_credentials([(kit.key, kit.certificate)], kit.ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    return server, port


async def _client(folder: Path, about: dict[str, str], *, repetitions: int) -> dict[str, list[float]]:
    kit, name = Kit.load(folder / "client"), BlobName.parse(about["name"])
    bare: Any = connect(about["bare"], role=Role.OWNER, kit=kit, timing=TIMING)
    ours = connect(about["ours"], role=Role.OWNER, kit=kit, timing=TIMING)
    for channel, address in ((bare, about["bare"]), (ours, about["ours"])):
        await ready(channel, address=address, role=Role.OWNER, timing=TIMING)
    how: dict[str, Any] = {"clock": CLOCK, "seeds": SeedTree(1), "timing": TIMING, "attempts_max": 1}
    store = BlobStore(folder / "mine", quota_bytes=2 * name.size)
    seconds: dict[str, list[float]] = {"bare": [], "read": [], "write": []}
    for _ in range(repetitions + 1):
        started = CLOCK.monotonic()
        received = sum([len(part) async for part in bare.unary_stream(BARE)(b"")])
        seconds["bare"].append(CLOCK.monotonic() - started)
        assert received == name.size

        started = CLOCK.monotonic()
        path = await transfer.download(ours, name, store, **how)
        seconds["read"].append(CLOCK.monotonic() - started)

        source = folder / "source"
        source.write_bytes(os.urandom(32) + path.read_bytes()[32:])
        store.discard(name.prefix)
        sent = BlobName(prefix="frames", digest=Digest.of(source.read_bytes()), size=name.size)
        started = CLOCK.monotonic()
        await transfer.upload(ours, sent, source, **how)
        seconds["write"].append(CLOCK.monotonic() - started)
    for channel in (bare, ours):
        await channel.close()
    return {kind: values[1:] for kind, values in seconds.items()}


def _show(seconds: dict[str, list[float]], *, size: int, as_json: bool) -> None:
    rates = {kind: size / 1e6 / statistics.median(values) for kind, values in seconds.items()}
    result = {
        "size_mb": size / 1e6,
        "part_bytes": transfer.part_bytes(size),
        **{f"{kind}_mb_per_s": round(rate, 1) for kind, rate in rates.items()},
        "read_to_bare": round(rates["read"] / rates["bare"], 2),
        "write_to_bare": round(rates["write"] / rates["bare"], 2),
    }
    if as_json:
        print(json.dumps(result))
        return
    print(f"{result['size_mb']:.0f} MB in parts of {result['part_bytes']} bytes, loopback, mutual TLS, medians")
    for kind, text in (("bare", "bare gRPC stream"), ("read", "download"), ("write", "upload")):
        share = f"{rates[kind] / rates['bare']:5.2f} of bare"
        print(f"  {text:<17}{rates[kind]:8.1f} MB/s   {share}")


if __name__ == "__main__":
    main()
