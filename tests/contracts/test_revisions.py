"""Is what a revision makes of an emulator the next one, bit for bit, and nothing else accepted for one?"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hushtune_common.adapter import Float32
from hushtune_common.errors import MalformedUpdate
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.revision import MARKER, apply_revision, revise, write_revision
from hushtune_common.model.weights import DType, TensorFile, write_tensors
from hushtune_common.seeding import SeedTree
from tests.models import tiny_bundle

KINDS: Mapping[str, tuple[DType, st.SearchStrategy[Any]]] = {
    "float32": ("F32", st.floats(width=32, allow_nan=False, allow_infinity=False)),
    "float16": ("F16", st.floats(width=16, allow_nan=False, allow_infinity=False)),
    "int8": ("I8", st.integers(-128, 127)),
    "uint8": ("U8", st.integers(0, 255)),
}


def arrays(kind: str) -> st.SearchStrategy[Float32]:
    return hnp.arrays(np.float32, (2, 3), elements=KINDS[kind][1].map(float))


def written(path: Path, tensors: Mapping[str, Float32], *, kinds: Mapping[str, DType], **metadata: str) -> Path:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write_tensors(path, shapes=shapes, tensor=tensors.__getitem__, metadata=metadata, dtype=kinds.__getitem__)
    return path


def made(folder: Path, base: Path, result: Path) -> bytes:
    write_revision(folder / "revision", base=base, result=result)
    apply_revision(folder / "revision", base=base, to=folder / "made")
    return (folder / "made").read_bytes()


@pytest.mark.slow
@settings(max_examples=20)
@given(st.data())
def test_the_old_one_and_the_revision_give_the_new_one_whatever_changed(data: st.DataObject) -> None:
    kinds: dict[str, DType] = {name: dtype for name, (dtype, _) in KINDS.items()}
    old = {name: data.draw(arrays(name)) for name in KINDS}
    new = {name: data.draw(st.one_of(st.just(tensor), arrays(name))) for name, tensor in old.items()}
    notes = st.dictionaries(st.sampled_from("abc"), st.text(max_size=3))
    with TemporaryDirectory() as name:
        folder = Path(name)
        base = written(folder / "base", old, kinds=kinds, **data.draw(notes))
        result = written(folder / "result", new, kinds=kinds, **data.draw(notes))
        assert made(folder, base, result) == result.read_bytes()


def trained(bundle: Path, *, by: float) -> dict[str, Float32]:
    """Return the adapter blocks of a bundle after small steps."""
    draws = SeedTree(1).child("steps").generator()
    return {
        name: (tensor * (1.0 + by * draws.standard_normal(tensor.shape))).astype(np.float32)
        for name, tensor in read_bundle(bundle).adapter_numpy().items()
    }


def test_of_trained_adapter_blocks_only_what_changed_travels_and_in_fewer_bytes(tmp_path: Path) -> None:
    base = tiny_bundle(tmp_path, 2, 3)
    changed = trained(base, by=1e-3)
    revise(tmp_path / "next", base=read_bundle(base).file, changed=changed, notes={"refinement": "{}"})
    found = write_revision(tmp_path / "revision", base=base, result=tmp_path / "next")
    apply_revision(tmp_path / "revision", base=base, to=tmp_path / "made")
    assert hashlib.sha256((tmp_path / "made").read_bytes()).digest() == hashlib.sha256((tmp_path / "next").read_bytes()).digest()
    assert (found.tensors, found.whole_bytes) == (len(changed), (tmp_path / "next").stat().st_size)
    assert found.size_bytes < 0.8 * sum(t.nbytes for t in changed.values())


def test_an_emulator_revised_by_nothing_is_the_same_file(tmp_path: Path) -> None:
    base = tiny_bundle(tmp_path, 2)
    revise(tmp_path / "same", base=read_bundle(base).file, changed={}, notes={})
    assert (tmp_path / "same").read_bytes() == base.read_bytes()
    assert write_revision(tmp_path / "revision", base=base, result=tmp_path / "same").tensors == 0


def test_a_revision_of_another_emulator_makes_something_that_its_digest_tells_apart(tmp_path: Path) -> None:
    base = tiny_bundle(tmp_path, 2, 3)
    other = tmp_path / "other"
    revise(tmp_path / "next", base=read_bundle(base).file, changed=trained(base, by=1e-3), notes={})
    revise(other, base=read_bundle(base).file, changed=trained(base, by=2e-3), notes={})
    write_revision(tmp_path / "revision", base=base, result=tmp_path / "next")
    apply_revision(tmp_path / "revision", base=other, to=tmp_path / "made")
    assert (tmp_path / "made").read_bytes() != (tmp_path / "next").read_bytes()


def test_emulators_of_other_tensors_have_no_revision_between_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="same tensors"):
        write_revision(tmp_path / "r", base=tiny_bundle(tmp_path, 2), result=tiny_bundle(tmp_path / "a", 3))
    with pytest.raises(ValueError, match="no such tensor"):
        revise(tmp_path / "r", base=TensorFile.open(tiny_bundle(tmp_path, 2)), changed={"w": np.zeros(1, np.float32)}, notes={})


Damage = Callable[[bytes], bytes]


def cut(count: int) -> Damage:
    return lambda data: data[:count]


def swapped(old: bytes, new: bytes, *, times: int = 1) -> Damage:
    return lambda data: data.replace(old, new, times)


def beyond(data: bytes) -> bytes:
    return MARKER + (1 << 62).to_bytes(8, "little") + data[len(MARKER) + 8 :]


def longer(data: bytes) -> bytes:
    return data + bytes(1)


def blank(data: bytes) -> bytes:
    return data[:-400] + bytes(400)


@pytest.mark.parametrize(
    "damage",
    [
        longer,
        cut(-1),
        cut(10),
        swapped(MARKER, b"hushtune-revision/2\n"),
        beyond,
        swapped(b'"model.layers.0', b'"model.layers.9'),
        swapped(b'"frames":[[', b'"frames":[{'),
        blank,
        swapped(b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfe", times=-1),
    ],
    ids=["longer", "shorter", "header cut", "marker", "length", "name", "not JSON", "zeros", "no frame"],
)
def test_what_is_no_revision_is_refused_and_leaves_nothing(tmp_path: Path, damage: Damage) -> None:
    base = tiny_bundle(tmp_path, 2, 3)
    revise(tmp_path / "next", base=read_bundle(base).file, changed=trained(base, by=1e-3), notes={})
    path = tmp_path / "revision"
    write_revision(path, base=base, result=tmp_path / "next")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(MalformedUpdate, match="revision"):
        apply_revision(path, base=base, to=tmp_path / "made")
    assert not list(tmp_path.glob("made*"))
