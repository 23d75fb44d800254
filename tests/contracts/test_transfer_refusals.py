"""Are bytes that are not as announced refused, and nothing of them kept?"""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from hushtune_common.errors import DigestMismatch, LimitExceeded, MalformedUpdate, NotYours, OffsetMismatch, PartCorrupt
from hushtune_common.messages import Digest
from hushtune_common.store.blobs import BlobName
from hushtune_common.wire.v1 import blobs_pb2 as pb
from tests.transfer_stage import MIB, QUOTA, bench, name_of, part_of, write


def test_a_corrupt_part_is_refused_and_nothing_of_it_kept(tmp_path: Path):
    data = os.urandom(2 * MIB)
    name = name_of(data)

    async def run() -> None:
        async with bench(tmp_path) as served:
            stub = served.stub()
            with pytest.raises(PartCorrupt):
                await write(stub, part_of(data[:MIB], 0, name=name, crc=1))
            assert served.store.committed_size(name) == 0
            done = await write(stub, part_of(data[:MIB], 0, name=name), part_of(data[MIB:], MIB, finish=True))
            assert done.complete

    asyncio.run(run())


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([], MalformedUpdate),
        ([pb.WriteRequest(resource_name="frames/../../etc")], MalformedUpdate),
        ([part_of(b"x" * (MIB + 1), 0, name=name_of(bytes(2 * MIB)))], LimitExceeded),
        ([part_of(b"", 0, name=name_of(b"abc"))], MalformedUpdate),
        ([part_of(b"a", 0, name=name_of(b"abc")), part_of(b"b", 1, name=name_of(b"abd"))], MalformedUpdate),
        ([part_of(b"abcd", 0, name=name_of(b"abc"), finish=True)], DigestMismatch),
        ([part_of(b"ab", 0, name=name_of(b"abc"), finish=True)], DigestMismatch),
        ([part_of(b"abc", -3, name=name_of(b"abc"), finish=True)], OffsetMismatch),
        ([part_of(b"a", 0, name=BlobName(prefix="frames/c1", digest=Digest(bytes(32)), size=QUOTA + 1))], LimitExceeded),
        ([part_of(b"a", 0, name=name_of(b"abc", "frames/c2"))], NotYours),
    ],
    ids=["nothing", "path", "large part", "empty part", "renamed", "too long", "too short", "offset", "large blob", "not yours"],
)
def test_bad_writes_are_refused(tmp_path: Path, parts: list[Any], error: type[Exception]):
    async def run() -> None:
        async with bench(tmp_path) as served:
            with pytest.raises(error):
                await write(served.stub(), *parts)
            assert not list((tmp_path / "served" / "complete").rglob("*"))

    asyncio.run(run())
