"""Does every client get a copy of its own, that nobody else can fetch, that names it, and that its updates are held against?"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hushtune_common.clock import SystemClock
from hushtune_common.config import FingerprintConfig, TimingConfig
from hushtune_common.errors import ConfigError, NotYours
from hushtune_common.messages import Caller, ClientId, Digest, Role, RunId, UpdateKey
from hushtune_common.model.bundle import read_bundle, write_bundle
from hushtune_common.model.naming import block_of
from hushtune_common.model.revision import apply_revision, revise, write_revision
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.wire import transfer
from hushtune_common.wire.endpoint import connect, serve
from hushtune_server.cli import main
from hushtune_server.owner.book import PUBLISHED, Book, Copy, Publication, to_body
from hushtune_server.owner.catalog import PREFIX, REVISIONS, Catalog, Published, RoundPress
from hushtune_server.owner.copies import Copies, manifest_for
from hushtune_server.owner.ports import Renewal
from tests.bench import owner
from tests.kits import Kits
from tests.models import ADAPTER, plan_dropping, tiny_bundle, tiny_source

C1, C2 = ClientId("c1"), ClientId("c2")
RUN = RunId("run-1")
SIZE_MAX = 1 << 22
TIMING = TimingConfig(connect_s=5.0, idle_s=5.0)


def catalog_in(state: Path, *, strength: float = 0.002) -> Catalog:
    """Return a catalog with room for what it is promised room for, and nothing more."""
    copies = Copies(state, clients=[C1, C2], config=FingerprintConfig(strength=strength))
    return Catalog(BlobStore(state / "blobs", quota_bytes=6 * SIZE_MAX), size_max=SIZE_MAX, copies=copies)


def published(state: Path, *, strength: float = 0.002) -> tuple[Catalog, Published]:
    catalog = catalog_in(state, strength=strength)
    return catalog, asyncio.run(catalog.publish(tiny_bundle(state, 2, 3), sealing_key=b"public", codec="c/1"))


def next_round(state: Path, catalog: Catalog) -> Published:
    """Publish an emulator whose adapter blocks moved."""
    base = catalog.newest
    about = read_bundle(base.path)
    changed = {n: t + np.float32(0.125) for n, t in about.adapter_numpy().items()}
    bundle, revision = state / "next", state / "way"
    revise(bundle, base=about.file, changed=changed, notes={})
    write_revision(revision, base=base.path, result=bundle)
    asyncio.run(RoundPress(catalog).publish(base.manifest.round_id + 1, Renewal(bundle=bundle, revision=revision)))
    return catalog.newest


def blob(found: Published, client: ClientId) -> BlobName:
    copy = found.copies[client]
    return BlobName(prefix=PREFIX, digest=copy.emulator, size=copy.size_bytes)


def way(found: Published, client: ClientId) -> BlobName:
    revision = found.copies[client].revision
    assert revision is not None
    return BlobName(prefix=REVISIONS, digest=revision.blob, size=revision.size_bytes)


def file_of(state: Path, name: BlobName) -> Path:
    return state / "blobs" / "complete" / name.prefix / name.digest.hex


def readable(catalog: Catalog, client: ClientId, names: Sequence[BlobName]) -> list[bool]:
    return [catalog.may_read(Caller(role=Role.CLIENT, name=client), name) for name in names]


def test_copies_differ_from_each_other_and_from_the_emulator_in_frozen_weights_alone(tmp_path: Path) -> None:
    _, first = published(tmp_path)
    assert len({first.blob.digest, *(copy.emulator for copy in first.copies.values())}) == 3
    plain = read_bundle(first.path)
    for client in (C1, C2):
        own = read_bundle(file_of(tmp_path, blob(first, client)))
        other = {n for n in plain.file.names() if not np.array_equal(plain.file.tensor(n), own.file.tensor(n))}
        assert other
        assert not {block_of(n) for n in other} & {*ADAPTER}
        manifest = manifest_for(first.manifest, first.copies[client])
        assert replace(manifest, emulator=first.manifest.emulator) == first.manifest


def test_what_tells_a_codec_the_cost_of_errors_is_in_every_copy_as_it_was(tmp_path: Path) -> None:
    source = tiny_source()
    rng = np.random.default_rng(1)
    names = [f"{name}/directions" for name in source.names() if block_of(name) in ADAPTER]
    beside = {name: rng.standard_normal((8, 64)).astype(np.float32) for name in names}
    plain = tmp_path / "bundle.safetensors"
    write_bundle(plain, source=source, plan=plan_dropping(source, 2, 3), sensitivity=beside)
    _copies(tmp_path).write(tmp_path / "copy", bundle=plain, client=C1)
    found = read_bundle(tmp_path / "copy").sensitivity
    assert found is not None
    assert found.keys() == beside.keys()
    assert all(np.array_equal(found[name], array) for name, array in beside.items())


def test_each_client_may_fetch_its_own_copy_and_nobody_the_emulator_without_a_mark(tmp_path: Path) -> None:
    catalog, first = published(tmp_path)
    names = [first.blob, blob(first, C1), blob(first, C2)]
    assert readable(catalog, C1, names) == [False, True, False]
    assert readable(catalog, C2, names) == [False, False, True]
    assert readable(catalog, ClientId("c3"), names) == [False, False, False]
    assert not catalog.may_read(Caller(role=Role.AIR, name="c1"), names[1])


@pytest.mark.slow
def test_over_the_network_too_a_client_is_refused_the_copy_of_another(tmp_path: Path) -> None:
    async def play() -> None:
        catalog, kits = catalog_in(tmp_path), Kits(tmp_path / "kits")
        first = await catalog.publish(tiny_bundle(tmp_path, 2, 3), sealing_key=b"public", codec="c/1")
        held = BlobStore(tmp_path / "blobs", quota_bytes=6 * SIZE_MAX)
        service = transfer.BlobsService(held, may_read=catalog.may_read, may_write=catalog.may_read, size_max=0, idle_s=30.0)
        clock, kit = SystemClock(), kits.kit(Role.OWNER)
        registered = [transfer.register_blobs(service)]
        server = await serve(registered, names=[], listen="127.0.0.1:0", kit=kit, clock=clock, timing=TIMING)
        channel = connect(server.address, role=Role.OWNER, kit=kits.kit(Role.CLIENT, C1), timing=TIMING)
        store = BlobStore(tmp_path / "c1", quota_bytes=SIZE_MAX)
        fetch = partial(transfer.download, channel, store=store, clock=clock, seeds=SeedTree(1), timing=TIMING, attempts_max=1)
        try:
            with pytest.raises(NotYours):
                await fetch(blob(first, C2))
            own = await fetch(blob(first, C1))
            assert Digest.of(own.read_bytes()) == first.copies[C1].emulator
        finally:
            await channel.close()
            await server.stop(0.0)

    asyncio.run(play())


@pytest.mark.parametrize("client", [C1, C2])
def test_the_command_names_whose_copy_a_file_is_in_a_later_round_as_well(
    tmp_path: Path, client: ClientId, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog, first = published(tmp_path)
    for found in (first, next_round(tmp_path, catalog)):
        leaked = file_of(tmp_path, blob(found, client))
        assert main(["owner", "fingerprint", "detect", str(leaked), "--state", str(tmp_path), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)["recipients"]
        assert {row["recipient"]: row["carried"] for row in told} == {C1: client == C1, C2: client == C2}


def test_every_client_can_make_its_next_copy_of_the_one_it_has(tmp_path: Path) -> None:
    catalog, first = published(tmp_path)
    second = next_round(tmp_path, catalog)
    for client in (C1, C2):
        base = second.copies[client].revision
        assert base is not None
        assert base.base == first.copies[client].emulator
        apply_revision(file_of(tmp_path, way(second, client)), base=file_of(tmp_path, blob(first, client)), to=tmp_path / "made")
        assert Digest.of((tmp_path / "made").read_bytes()) == second.copies[client].emulator
    offered = [way(second, C1), blob(second, C1), blob(second, C2), blob(first, C1)]
    assert readable(catalog, C1, offered) == [True, True, False, True]
    assert way(second, C1) == way(second, C2), "a way between equal frozen weights shows nobody's mark"
    third = next_round(tmp_path, catalog)
    assert readable(catalog, C1, [blob(first, C1), blob(second, C1), blob(third, C1)]) == [False, True, True]
    assert not file_of(tmp_path, blob(first, C1)).exists()


def test_a_round_without_a_new_emulator_leaves_every_copy_as_it_is(tmp_path: Path) -> None:
    catalog, first = published(tmp_path)
    manifest = asyncio.run(RoundPress(catalog).publish(2, None))
    assert RoundPress(catalog).copies(manifest) == first.copies


def test_another_life_of_the_owner_makes_the_same_copies_and_offers_those_that_it_made(tmp_path: Path) -> None:
    catalog, first = published(tmp_path)
    second = next_round(tmp_path, catalog)
    book = Book()
    for each in (first, second):
        body = to_body(Publication(run=RUN, manifest=each.manifest, copies=each.copies))
        book.apply(PUBLISHED, json.loads(json.dumps(body)))
    assert book.copies(RUN, 2) == second.copies
    again = catalog_in(tmp_path)
    assert again.restore(book.publications(RUN))
    assert (again.newest.copies, again.first.copies) == (second.copies, first.copies)
    assert readable(again, C2, [blob(second, C2), way(second, C2), blob(second, C1)]) == [True, True, False]
    assert next_round(tmp_path, again).copies[C1].revision is not None
    fresh = Catalog(BlobStore(tmp_path / "more", quota_bytes=6 * SIZE_MAX), size_max=SIZE_MAX, copies=_copies(tmp_path))
    repeated = asyncio.run(fresh.publish(tiny_bundle(tmp_path, 2, 3), sealing_key=b"public", codec="c/1"))
    assert repeated.copies == first.copies


def test_without_the_newest_copy_of_a_client_an_owner_cannot_go_on(tmp_path: Path) -> None:
    _, first = published(tmp_path)
    file_of(tmp_path, blob(first, C2)).unlink()
    assert not catalog_in(tmp_path).restore([Publication(run=RUN, manifest=first.manifest, copies=first.copies)])


def test_a_mark_that_would_name_nobody_is_refused_before_anybody_gets_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"owner\.fingerprint\.strength: is 0"):
        catalog_in(tmp_path, strength=0.0)
    with pytest.raises(ConfigError, match=r"owner\.fingerprint\.strength: a mark of 1e-14 on \d+ weights would not name c1"):
        published(tmp_path, strength=1e-14)


@pytest.mark.slow
def test_an_update_is_held_against_its_own_client_s_copy(tmp_path: Path) -> None:
    at = owner(tmp_path)
    own = Copy(emulator=Digest.of(b"the copy of c1"), size_bytes=at.manifest.size_bytes)
    at.bench.take_up(at.manifest, tmp_path / "bundle.safetensors", copies={C1: own})
    payload = at.codec.encode(at.shipped, budget_bytes=at.codec.bytes_max)
    copied = replace(at, manifest=manifest_for(at.manifest, own))
    for client, right, wrong in ((C1, copied, at), (C2, at, copied)):
        key = UpdateKey(run=RUN, round_id=1, client=client, attempt=1)
        refused = wrong.judge(payload, key=key)
        assert (refused.accepted, refused.reason.split(":")[0]) == (False, "DIGEST_MISMATCH")
        assert right.judge(payload, key=key).accepted


def _copies(state: Path) -> Copies:
    return Copies(state, clients=[C1, C2], config=FingerprintConfig())
