"""Does a frame reach the air as it is, once, in process and over gRPC alike?"""

from pathlib import Path

import pytest

from hushtune_client.gateway import Addresses, Manners, open_ports
from hushtune_common.clock import SystemClock
from hushtune_common.config import TimingConfig
from hushtune_common.errors import MalformedUpdate, PeerLost
from hushtune_common.messages import Digest, Part, Role
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobStore
from tests.kits import Kits
from tests.loopback import CLIENT, SCENARIO, World
from tests.ports_stage import FRAME, KEY, WAYS, Open, frame_of, kept, run, transmission, ways_to


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture(params=WAYS)
def ports_to(request: pytest.FixtureRequest, kits: Kits, tmp_path: Path) -> Open:
    return ways_to(tmp_path, kits=kits, way=request.param)


async def at_once() -> None:
    """Let a transmission begin."""


def test_a_frame_is_written_under_its_digest_and_carried_once(ports_to: Open, tmp_path: Path) -> None:
    async def work() -> None:
        world = World(lost=lambda key, sent: sent[:1] if key.attempt == 1 else ())
        async with ports_to(world) as ports:
            assert await ports.air.write_frame(KEY, kept(tmp_path, FRAME)) == Digest.of(FRAME)
            first = await ports.air.transmit(transmission(), cleared=at_once)
            assert first.missing == (0,)
            assert first.airtime > 0.0
            assert await ports.air.transmit(transmission(), cleared=at_once) == first
            assert world.sent[KEY][0] == transmission()
        assert world.frames == {Digest.of(FRAME): FRAME}

    run(work())


def test_a_frame_larger_than_one_message_arrives_whole_and_tells_its_progress(ports_to: Open, tmp_path: Path) -> None:
    frame = frame_of(SeedTree(0).generator().bytes(5 << 20))

    async def work() -> None:
        world, seen = World(), list[tuple[int, int]]()
        async with ports_to(world) as ports:
            path = kept(tmp_path, frame)
            digest = await ports.air.write_frame(KEY, path, progress=lambda done, total: seen.append((done, total)))
            assert await ports.air.write_frame(KEY, path) == digest
            await ports.air.transmit(transmission(frame=frame), cleared=at_once)
        assert world.frames == {digest: frame}
        assert seen == sorted(seen)
        assert seen[-1] == (len(frame), len(frame))

    run(work())


def test_each_part_is_sent_as_what_it_is(ports_to: Open, tmp_path: Path) -> None:
    frame = frame_of(bytes(32), part=Part.KEY)

    async def work() -> None:
        world = World()
        async with ports_to(world) as ports:
            await ports.air.write_frame(KEY, kept(tmp_path, frame))
            with pytest.raises(MalformedUpdate):
                await ports.air.transmit(transmission(frame=frame, part=Part.PAYLOAD), cleared=at_once)
            await ports.air.transmit(transmission(frame=frame, part=Part.KEY), cleared=at_once)
            assert [sent.part for sent, _ in world.sent.values()] == [Part.KEY]

    run(work())


def test_a_frame_that_was_not_written_cannot_be_sent(ports_to: Open) -> None:
    async def work() -> None:
        async with ports_to(World()) as ports:
            with pytest.raises(MalformedUpdate):
                await ports.air.transmit(transmission(), cleared=at_once)

    run(work())


def test_a_counterpart_that_does_not_answer_is_named_with_its_address(kits: Kits, tmp_path: Path) -> None:
    async def work() -> None:
        timing = TimingConfig(connect_s=0.5, idle_s=1.0, round_s=5.0)
        manners = Manners(timing=timing, attempts_max=2, clock=SystemClock(), seeds=SeedTree(0))
        nowhere = Addresses(owner="127.0.0.1:1", coordinator="127.0.0.1:1", air="127.0.0.1:1")
        store = BlobStore(tmp_path / "blobs", quota_bytes=1)
        with pytest.raises(PeerLost, match=r"owner .*127\.0\.0\.1:1"):
            async with open_ports(nowhere, kit=kits.kit(Role.CLIENT, CLIENT), manners=manners, scenario=SCENARIO, store=store):
                pytest.fail("nobody is there")

    run(work())
