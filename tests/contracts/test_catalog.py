"""Is what the catalog says about an emulator true of the blob, and who may fetch it?"""

import asyncio
import hashlib
import shutil
from pathlib import Path

import pytest

from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.messages import Caller, Digest, EmulatorManifest, Role, RunId
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.revision import apply_revision, revise, write_revision
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_server.owner.book import Publication
from hushtune_server.owner.catalog import PREFIX, REVISIONS, Catalog, Published, RoundPress
from hushtune_server.owner.ports import Renewal
from tests.models import tiny_bundle, tiny_source

RUN = RunId("run-1")
CLIENT = Caller(role=Role.CLIENT, name="c1")


def publish(folder: Path, bundle: Path, *, size_max: int = 1 << 26) -> tuple[Catalog, Published]:
    catalog = Catalog(BlobStore(folder / "blobs", quota_bytes=1 << 26), size_max=size_max)
    return catalog, asyncio.run(catalog.publish(bundle, sealing_key=b"public", codec="delta-int8-b64-zstd/1"))


def test_the_manifest_is_true_of_the_blob(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, 2, 3)
    content = bundle.read_bytes()
    _, published = publish(tmp_path, bundle)
    manifest = published.manifest
    assert published.path.read_bytes() == content
    assert manifest.emulator.value == hashlib.sha256(content).digest()
    assert manifest.size_bytes == len(content)
    assert manifest.base == tiny_source().base_digest
    about = read_bundle(published.path)
    assert (manifest.plan, manifest.tokenizer) == (about.plan.digest, about.tokens.digest)
    assert {spec.block for spec in manifest.adapter} == set(about.plan.adapter)


def test_publishing_the_same_file_twice_gives_the_same_manifest(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, 2)
    copy = shutil.copy(bundle, tmp_path / "copy.safetensors")
    _, first = publish(tmp_path, bundle)
    _, second = publish(tmp_path, Path(copy))
    assert first.manifest == second.manifest


def test_clients_fetch_what_is_on_offer_and_nothing_else(tmp_path: Path) -> None:
    catalog, published = publish(tmp_path, tiny_bundle(tmp_path, 2))
    assert catalog.may_read(CLIENT, published.blob)
    for role in set(Role) - {Role.CLIENT}:
        assert not catalog.may_read(Caller(role=role, name="someone"), published.blob)
    other = BlobName(prefix="emulators", digest=Digest.of(b"other"), size=published.blob.size)
    received = BlobName(prefix="receptions/main/r/1/c1/1", digest=published.blob.digest, size=published.blob.size)
    assert not catalog.may_read(CLIENT, other)
    assert not catalog.may_read(CLIENT, received)


def test_a_file_that_is_no_bundle_is_not_published(tmp_path: Path) -> None:
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"\x08" + bytes(7) + b'{"a":1}  ')
    with pytest.raises(MalformedUpdate):
        publish(tmp_path, junk)


def test_an_emulator_above_the_limit_is_refused_by_the_setting_s_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"limits\.emulator_bytes_max"):
        publish(tmp_path, tiny_bundle(tmp_path, 2), size_max=100)


# --- from round to round ----------------------------------------------------------------------------------------------


def renewed(folder: Path, base: Path, *, by: float) -> Renewal:
    """Return another emulator: all adapter blocks moved by so much."""
    about = read_bundle(base)
    bundle, revision = folder / "next", folder / "way"
    revise(bundle, base=about.file, changed={n: t + by for n, t in about.adapter_numpy().items()}, notes={})
    write_revision(revision, base=base, result=bundle)
    return Renewal(bundle=bundle, revision=revision)


def later(folder: Path, catalog: Catalog, *, rounds: int) -> list[EmulatorManifest]:
    """Publish an emulator for each of so many rounds after the newest."""

    async def publish() -> list[EmulatorManifest]:
        made: list[EmulatorManifest] = []
        for _ in range(rounds):
            round_id = catalog.newest.manifest.round_id + 1
            made.append(await RoundPress(catalog).publish(round_id, renewed(folder, catalog.newest.path, by=0.125)))
        return made

    return asyncio.run(publish())


def blob_of(manifest: EmulatorManifest) -> BlobName:
    return BlobName(prefix=PREFIX, digest=manifest.emulator, size=manifest.size_bytes)


def way_of(manifest: EmulatorManifest) -> BlobName:
    assert manifest.revision is not None
    return BlobName(prefix=REVISIONS, digest=manifest.revision.blob, size=manifest.revision.size_bytes)


def test_the_emulator_of_a_later_round_can_be_made_of_the_one_before_and_of_what_is_on_offer(tmp_path: Path) -> None:
    catalog, first = publish(tmp_path, tiny_bundle(tmp_path, 2, 3))
    (manifest,) = later(tmp_path, catalog, rounds=1)
    assert (manifest.round_id, first.manifest.round_id, first.manifest.revision) == (2, 1, None)
    assert manifest.revision is not None
    assert (manifest.revision.base, manifest.revision.base_bytes) == (first.manifest.emulator, first.manifest.size_bytes)
    assert all(catalog.may_read(CLIENT, name) for name in (first.blob, blob_of(manifest), way_of(manifest)))
    store = BlobStore(tmp_path / "blobs", quota_bytes=1 << 26)
    apply_revision(store.path(way_of(manifest)), base=first.path, to=tmp_path / "made")
    assert Digest.of((tmp_path / "made").read_bytes()) == manifest.emulator


def test_a_round_without_a_new_emulator_has_the_old_one_under_its_own_number(tmp_path: Path) -> None:
    catalog, first = publish(tmp_path, tiny_bundle(tmp_path, 2))
    manifest = asyncio.run(RoundPress(catalog).publish(2, None))
    assert (manifest.round_id, manifest.emulator, manifest.size_bytes) == (2, first.manifest.emulator, first.manifest.size_bytes)
    assert catalog.path(manifest) == first.path


def test_the_first_emulator_and_the_newest_two_stay(tmp_path: Path) -> None:
    catalog, first = publish(tmp_path, tiny_bundle(tmp_path, 2))
    second, third, fourth = later(tmp_path, catalog, rounds=3)
    asyncio.run(RoundPress(catalog).publish(5, None))
    held = {name for name in (first.blob, *map(blob_of, (second, third, fourth))) if catalog.may_read(CLIENT, name)}
    assert held == {first.blob, blob_of(third), blob_of(fourth)}
    assert [catalog.may_read(CLIENT, way_of(m)) for m in (second, third, fourth)] == [False, False, True]
    assert len(list((tmp_path / "blobs" / "complete" / PREFIX).iterdir())) == 3


def test_what_was_published_is_on_offer_again_after_a_restart(tmp_path: Path) -> None:
    catalog, first = publish(tmp_path, tiny_bundle(tmp_path, 2))
    manifests = [first.manifest, *later(tmp_path, catalog, rounds=3)]
    again = Catalog(BlobStore(tmp_path / "blobs", quota_bytes=1 << 26), size_max=1 << 26)
    assert again.restore([Publication(run=RUN, manifest=manifest) for manifest in manifests])
    assert (again.first.manifest, again.newest.manifest) == (manifests[0], manifests[-1])
    assert [again.may_read(CLIENT, blob_of(m)) for m in manifests] == [True, False, True, True]


def test_without_its_newest_emulator_an_owner_cannot_go_on(tmp_path: Path) -> None:
    catalog, first = publish(tmp_path, tiny_bundle(tmp_path, 2))
    manifests = [first.manifest, *later(tmp_path, catalog, rounds=1)]
    catalog.newest.path.unlink()
    again = Catalog(BlobStore(tmp_path / "blobs", quota_bytes=1 << 26), size_max=1 << 26)
    assert not again.restore([Publication(run=RUN, manifest=manifest) for manifest in manifests])
