"""The named peer of the transport's measurements: gRPC streams with the same bytes, the same checks, and nothing else.

``Write`` takes parts, checks CRC-32, hashes with SHA-256, writes to one file and syncs it every 4 MiB and at the end, as a blob
does; it knows no names, no offsets and no resumption. ``Read`` sends what it was given, message by message. ``Call`` answers at
once with what it was asked.
"""

import asyncio
import hashlib
import os
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from hushtune_common.store.partial import SYNC_BYTES
from hushtune_common.wire.endpoint import Kit

WRITE = "/hushtune.bench.Bare/Write"
READ = "/hushtune.bench.Bare/Read"
CALL = "/hushtune.bench.Bare/Call"
_CRC_BYTES = 4


async def serve_bare(kit: Kit, *, file: Path, messages: Sequence[bytes]) -> tuple[grpc.aio.Server, str]:
    """Serve all three with mutual TLS on a free port of this machine; return the server and its address."""

    async def write(requests: AsyncIterator[bytes], context: Any) -> bytes:
        return await _written(requests, file)

    async def read(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    async def call(request: bytes, context: Any) -> bytes:
        return request

    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Write": grpc.stream_unary_rpc_method_handler(write),
        "Read": grpc.unary_stream_rpc_method_handler(read),
        "Call": grpc.unary_unary_rpc_method_handler(call),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("hushtune.bench.Bare", handlers),))
    credentials = grpc.ssl_server_credentials([(kit.key, kit.certificate)], kit.ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    return server, f"127.0.0.1:{port}"


async def write_bare(channel: Any, data: bytes, *, part_bytes: int) -> None:
    """Send ``data`` in parts and wait until the peer has it durably; ``ValueError`` when it got something else."""

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(data), part_bytes):
            part = data[start : start + part_bytes]
            yield part + zlib.crc32(part).to_bytes(_CRC_BYTES, "big")

    answer: bytes = await channel.stream_unary(WRITE)(parts())
    if answer != hashlib.sha256(data).digest():
        raise ValueError("the bare peer got other bytes than were sent")


async def read_bare(channel: Any) -> int:
    """Take every message of the peer and return their bytes together."""
    return sum([len(message) async for message in channel.unary_stream(READ)(b"")])


async def _written(requests: AsyncIterator[bytes], file: Path) -> bytes:
    digest, position, durable = hashlib.sha256(), 0, 0
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        async for request in requests:
            part = memoryview(request)[:-_CRC_BYTES]
            if zlib.crc32(part) != int.from_bytes(request[-_CRC_BYTES:], "big"):
                raise ValueError("a part is corrupt")
            digest.update(part)
            position += os.pwrite(descriptor, part, position)
            if position - durable >= SYNC_BYTES:
                await asyncio.to_thread(os.fdatasync, descriptor)
                durable = position
        await asyncio.to_thread(os.fdatasync, descriptor)
    finally:
        os.close(descriptor)
    return digest.digest()
