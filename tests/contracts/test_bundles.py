"""Are plans, tensor files and bundles deterministic, and is everything else refused?"""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hushtune_common.errors import DigestMismatch, MalformedUpdate
from hushtune_common.messages import Digest
from hushtune_common.model.bundle import read_bundle, write_bundle
from hushtune_common.model.plan import Plan
from hushtune_common.model.random_model import RandomSpec, RandomWeights
from hushtune_common.model.slots import Drop, Keep
from hushtune_common.model.weights import TensorFile, Weights, write_tensors
from tests.models import ADAPTER, plan_dropping, tiny_bundle, tiny_source


def test_equal_inputs_give_equal_bundle_bytes(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert tiny_bundle(tmp_path, 2, 3).read_bytes() == tiny_bundle(tmp_path / "other", 2, 3).read_bytes()


def test_a_bundle_brings_back_plan_tokenizer_and_schema(tmp_path: Path) -> None:
    source = tiny_source()
    bundle = read_bundle(tiny_bundle(tmp_path, 2, 3))
    assert bundle.plan == plan_dropping(source, 2, 3)
    assert bundle.base_digest == source.base_digest
    assert bundle.tokens.digest == source.tokens.digest
    assert sorted({spec.block for spec in bundle.schema}) == list(ADAPTER)
    assert list(bundle.adapter_numpy()) == [spec.name for spec in bundle.schema]


def test_dropped_blocks_are_not_in_the_file(tmp_path: Path) -> None:
    names = read_bundle(tiny_bundle(tmp_path, 2, 3)).file.names()
    assert not [n for n in names if n.startswith(("model.layers.2.", "model.layers.3."))]
    assert [n for n in names if n.startswith("model.layers.4.")]


def test_an_untied_head_is_shipped(tmp_path: Path) -> None:
    source = tiny_source("random:blocks=6,hidden=32,heads=4,tied=0")
    assert "lm_head.weight" in read_bundle(tiny_bundle(tmp_path, 2, source=source)).file.names()


def test_bundles_can_be_read_by_the_reference_implementation(tmp_path: Path) -> None:
    source = tiny_source()
    for name, value in load_file(tiny_bundle(tmp_path, 2)).items():
        assert np.array_equal(value, source.tensor(name))


def test_a_plan_for_another_model_makes_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch, match="make a new plan"):
        write_bundle(tmp_path / "x", source=tiny_source(), plan=plan_dropping(tiny_source("random:seed=2"), 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [0, 7, 8, 100, 5_000, -1])
def test_a_truncated_bundle_is_malformed(tmp_path: Path, cut: int) -> None:
    path = tiny_bundle(tmp_path, 2)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(MalformedUpdate):
        read_bundle(path)


def test_other_safetensors_files_are_not_bundles(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3, dtype=np.float32)}, tmp_path / "x", metadata={"format": "pt"})
    with pytest.raises(MalformedUpdate, match="not an emulator bundle"):
        read_bundle(tmp_path / "x")


def test_a_bundle_whose_blocks_differ_from_its_plan_is_malformed(tmp_path: Path) -> None:
    source = tiny_source()
    honest = read_bundle(tiny_bundle(tmp_path, 2)).file
    shapes = {name: honest.shape(name) for name in honest.names()}
    metadata = {**honest.metadata, "plan": plan_dropping(source, 3).to_json()}
    write_tensors(tmp_path / "x", shapes=shapes, tensor=honest.tensor, metadata=metadata)
    with pytest.raises(MalformedUpdate, match="its plan stores"):
        read_bundle(tmp_path / "x")


def test_a_missing_tensor_is_named_when_the_bundle_is_loaded(tmp_path: Path) -> None:
    honest = read_bundle(tiny_bundle(tmp_path)).file
    shapes = {name: honest.shape(name) for name in honest.names() if name != "model.norm.weight"}
    write_tensors(tmp_path / "x", shapes=shapes, tensor=honest.tensor, metadata=honest.metadata)
    with pytest.raises(MalformedUpdate, match=r"model\.norm\.weight: missing"):
        read_bundle(tmp_path / "x").load()


def header(entries: object, *, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        (2**63).to_bytes(8, "little") + b"{}",
        header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 15]}}, data=bytes(15)),
        header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 16]}}, data=bytes(16)),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, data=bytes(4)),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, data=bytes(8)),
        header({"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, data=bytes(8)),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, data=bytes(8)),
        header(
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            },
            data=bytes(12),
        ),
        header([1, 2]),
    ],
    ids=["empty", "huge header", "odd bytes", "huge shape", "negative", "gap", "dtype", "rest", "overlap", "no object"],
)
def test_hostile_headers_are_malformed_before_anything_is_allocated(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(MalformedUpdate):
        TensorFile.open(tmp_path / "x")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_malformed_or_an_empty_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary"
    path.write_bytes(content)
    with contextlib.suppress(MalformedUpdate):
        assert not TensorFile.open(path).names()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_half_precision_is_read_as_float32(tmp_path: Path, dtype: type[np.floating]) -> None:
    values = np.array([[1.5, -2.25, 0.0], [3.0, 1e-3, -0.5]], dtype=dtype)
    save_file({"a": values}, tmp_path / "x")
    assert np.array_equal(TensorFile.open(tmp_path / "x").tensor("a"), values.astype(np.float32))


def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 0.15625], dtype=np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    (tmp_path / "x").write_bytes(header({"a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}, data=upper))
    assert np.array_equal(TensorFile.open(tmp_path / "x").tensor("a"), values)


@pytest.mark.parametrize("form", ["file", "random"])
def test_a_tensor_belongs_to_its_caller(tmp_path: Path, form: str) -> None:
    random = RandomWeights(RandomSpec(blocks=1))
    weights: Weights = random if form == "random" else read_bundle(tiny_bundle(tmp_path)).file
    for name in weights.names():
        first = weights.tensor(name)
        kept = first.copy()
        first += 1.0
        assert np.array_equal(weights.tensor(name), kept)
        assert weights.shape(name) == first.shape
    assert list(weights.names()) == sorted(weights.names())


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format":"hushtune-plan/2"}', plan_dropping(tiny_source(), 2).to_json().replace('"drop"', '"share"', 1)],
)
def test_other_json_is_no_plan(text: str) -> None:
    with pytest.raises(MalformedUpdate, match="not a plan"):
        Plan.from_json(text)


def test_a_plan_that_drops_an_adapter_block_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="no Keep for"):
        Plan(base=Digest.of(b""), adapter=(0, 1), slots=(Keep(0), Drop(1)), method="by_hand")


def test_a_plan_with_slots_out_of_order_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="in order"):
        Plan(base=Digest.of(b""), adapter=(0,), slots=(Keep(0), Drop(2), Keep(1)), method="by_hand")
