"""Do manifests, emulators and verdicts reach a client as they are, in process and over gRPC alike?"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hushtune_common.errors import DigestMismatch, ScenarioMismatch
from hushtune_common.messages import Digest, EmulatorManifest, Revision, Verdict
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.revision import revise, write_revision
from tests.kits import Kits
from tests.loopback import RUN, World, manifest_of
from tests.loopback_grpc import grpc_ports
from tests.models import tiny_bundle
from tests.ports_stage import KEY, WAYS, Open, run, ways_to


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture(params=WAYS)
def ports_to(request: pytest.FixtureRequest, kits: Kits, tmp_path: Path) -> Open:
    return ways_to(tmp_path, kits=kits, way=request.param)


def test_the_manifest_arrives_as_it_was_published(ports_to: Open) -> None:
    async def work() -> None:
        world = World()
        async with ports_to(world) as ports:
            assert await ports.owner.manifest(RUN, 1) == world.manifest

    run(work())


def test_an_owner_of_another_scenario_gives_no_manifest(ports_to: Open) -> None:
    async def work() -> None:
        async with ports_to(World(), scenario=Digest.of(b"other")) as ports:
            with pytest.raises(ScenarioMismatch):
                await ports.owner.manifest(RUN, 1)

    run(work())


def test_an_emulator_is_fetched_as_promised_and_fetching_again_gives_the_same(ports_to: Open) -> None:
    async def work() -> None:
        world, seen = World(), list[tuple[int, int]]()
        async with ports_to(world) as ports:
            first = await ports.owner.fetch(world.manifest, progress=lambda done, total: seen.append((done, total)))
            assert Digest.of(first.path.read_bytes()) == world.manifest.emulator
            again = await ports.owner.fetch(world.manifest)
            assert again.path.read_bytes() == first.path.read_bytes()
            assert (first.bytes_fetched, again.bytes_fetched) == (world.manifest.size_bytes, 0)
        assert seen[-1] == (world.manifest.size_bytes, world.manifest.size_bytes)
        assert seen == sorted(seen)

    run(work())


def test_the_emulator_of_a_round_is_waited_for(ports_to: Open) -> None:
    async def work() -> None:
        world = World()
        later = replace(manifest_of(b"later"), round_id=2)
        async with ports_to(world) as ports:
            waiting = asyncio.create_task(ports.owner.manifest(RUN, 2))
            assert (await ports.owner.manifest(RUN, 1)).round_id == 1
            world.publish(later, b"later")
            assert await waiting == later

    run(work())


def revised_world(folder: Path, *, damage: Callable[[bytes], bytes] = bytes) -> tuple[World, EmulatorManifest]:
    """Return a world with two emulators, and the manifest of the second, which names the way to it from the first."""
    base, result, way = tiny_bundle(folder, 2, 3), folder / "result", folder / "way"
    bundle = read_bundle(base)
    revise(result, base=bundle.file, changed={n: t + 0.125 for n, t in bundle.adapter_numpy().items()}, notes={})
    write_revision(way, base=base, result=result)
    revision = damage(way.read_bytes())
    first = manifest_of(base.read_bytes())
    known = Revision(base=first.emulator, base_bytes=first.size_bytes, blob=Digest.of(revision), size_bytes=len(revision))
    second = replace(manifest_of(result.read_bytes()), round_id=2, revision=known)
    world = World(emulator=base.read_bytes(), manifest=first)
    world.publish(second, result.read_bytes(), revision=revision)
    return world, second


def test_of_a_later_emulator_only_what_changed_is_fetched(ports_to: Open, tmp_path: Path) -> None:
    async def work() -> None:
        world, second = revised_world(tmp_path)
        async with ports_to(world) as ports:
            await ports.owner.fetch(world.manifest)
            later = await ports.owner.fetch(second)
            assert Digest.of(later.path.read_bytes()) == second.emulator
            assert second.revision is not None
            assert (later.revised, later.bytes_fetched) == (True, second.revision.size_bytes)
            assert later.bytes_fetched < second.size_bytes

    run(work())


def test_a_newcomer_fetches_the_whole(ports_to: Open, tmp_path: Path) -> None:
    async def work() -> None:
        world, second = revised_world(tmp_path)
        async with ports_to(world) as ports:
            later = await ports.owner.fetch(second)
            assert Digest.of(later.path.read_bytes()) == second.emulator
            assert (later.revised, later.bytes_fetched) == (False, second.size_bytes)

    run(work())


def test_an_emulator_with_other_content_is_refused(ports_to: Open) -> None:
    async def work() -> None:
        world = World()
        world.tampered = bytes(len(world.emulator))
        async with ports_to(world) as ports:
            with pytest.raises(DigestMismatch):
                await ports.owner.fetch(world.manifest)

    run(work())


def test_a_verdict_is_waited_for_and_is_the_callers_own(ports_to: Open) -> None:
    async def work() -> None:
        world = World()
        foreign = Verdict(key=replace(KEY, client="c2"), accepted=False, kept=False, reason="no", score=None)
        own = Verdict(key=KEY, accepted=True, kept=True, reason="better", score=12.5)
        async with ports_to(world) as ports:
            waiting = asyncio.create_task(ports.owner.verdict(RUN, 1))
            world.judge(foreign)
            world.judge(own)
            assert await waiting == own

    run(work())


def cut_short(revision: bytes) -> bytes:
    return revision[:-1]


def other_values(revision: bytes) -> bytes:
    """Return what is a revision as far as anybody can tell, of another emulator."""
    return revision.replace(b'"notes":{}', b'"notes":{"a":"b"}').replace(
        (n := int.from_bytes(revision[20:28], "little")).to_bytes(8, "little"), (n + 7).to_bytes(8, "little"), 1
    )


@pytest.mark.parametrize("damage", [cut_short, other_values], ids=["not readable", "leads elsewhere"])
def test_a_way_that_does_not_lead_there_is_told_and_the_whole_is_fetched(
    kits: Kits, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    async def work() -> None:
        world, second = revised_world(tmp_path, damage=damage)
        seen = list[int]()
        async with grpc_ports(world, kits=kits, folder=tmp_path) as ports:
            await ports.owner.fetch(world.manifest)
            later = await ports.owner.fetch(second, progress=lambda done, total: seen.append(done))
            assert Digest.of(later.path.read_bytes()) == second.emulator
            assert (later.revised, later.bytes_fetched) == (False, second.size_bytes)
            assert "MALFORMED" in later.problem or "DIGEST_MISMATCH" in later.problem
        assert seen == sorted(seen)
        held = [path for path in (tmp_path / "client").rglob("*") if path.is_file()]
        assert held == [later.path], "neither the emulator before, nor what was of no use"

    run(work())
