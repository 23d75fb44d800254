"""Is what the catalog says about an emulator true of the blob, and who may fetch it?"""

import asyncio
import hashlib
import shutil
from pathlib import Path

import pytest

from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.messages import Caller, Digest, Role
from hushtune_common.model.bundle import read_bundle
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_server.owner.catalog import Catalog, Published
from tests.models import tiny_bundle, tiny_source

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
