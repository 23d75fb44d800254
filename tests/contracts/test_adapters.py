"""Does only a whole, finite, well-formed adapter get into a model or out of a file?"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from hushtune_common.adapter import AdapterState, load_adapter, require_matches, save_adapter
from hushtune_common.errors import MalformedUpdate
from hushtune_common.model.adapter import adapter_specs, extract, insert
from tests.models import ADAPTER, tiny_source

SOURCE = tiny_source()
EXPECTED = adapter_specs(SOURCE.weights, ADAPTER)
NAME = "model.layers.5.self_attn.q_proj.weight"


def shipped() -> dict[str, NDArray[np.float32]]:
    return {spec.name: SOURCE.tensor(spec.name) for spec in EXPECTED}


def spoiled(how: str) -> Mapping[str, NDArray[np.float32]]:
    tensors = shipped()
    match how:
        case "missing":
            del tensors[NAME]
        case "extra":
            tensors["model.layers.2.self_attn.q_proj.weight"] = tensors[NAME]
        case "shape":
            tensors[NAME] = np.ascontiguousarray(tensors[NAME].reshape(-1))
        case "nan":
            tensors[NAME][0, 0] = np.nan
        case _:
            tensors[NAME][0, 0] = -np.inf
    return tensors


@pytest.mark.parametrize("how", ["missing", "extra", "shape", "nan", "infinite"])
def test_insert_refuses_and_names_the_tensor_and_changes_nothing(how: str) -> None:
    model = SOURCE.load()
    culprit = r"layers\.2\.self_attn\.q_proj" if how == "extra" else r"layers\.5\.self_attn\.q_proj"
    with pytest.raises(MalformedUpdate, match=culprit):
        insert(model, AdapterState(spoiled(how)), expected=EXPECTED)
    assert all(np.array_equal(value, SOURCE.tensor(name)) for name, value in extract(model, ADAPTER).tensors.items())


REASONS = {
    "missing": f"{NAME}: missing from the adapter",
    "extra": "model.layers.2.self_attn.q_proj.weight: not a tensor of the adapter blocks",
    "shape": f"{NAME}: shape (1024,), expected (32, 32)",
    "nan": f"{NAME}: holds values that are not finite",
    "infinite": f"{NAME}: holds values that are not finite",
}


@pytest.mark.parametrize(("how", "reason"), REASONS.items())
def test_a_refusal_names_the_tensor_and_what_is_wrong_with_it(how: str, reason: str) -> None:
    with pytest.raises(MalformedUpdate) as refused:
        require_matches(AdapterState(spoiled(how)), EXPECTED)
    assert str(refused.value) == reason


@pytest.mark.parametrize("how", ["missing", "extra", "shape", "nan", "infinite", "dtype"])
def test_a_file_with_a_spoiled_adapter_is_refused_and_the_tensor_named(tmp_path: Path, how: str) -> None:
    tensors: dict[str, NDArray[np.floating]] = dict(shipped() if how == "dtype" else spoiled(how))
    if how == "dtype":
        tensors[NAME] = tensors[NAME].astype(np.float16)
    save_file(tensors, tmp_path / "a")
    with pytest.raises(MalformedUpdate, match=r"self_attn\.q_proj"):
        load_adapter(tmp_path / "a", EXPECTED)


def test_an_adapter_survives_its_file_in_the_order_of_the_schema(tmp_path: Path) -> None:
    state = AdapterState(shipped())
    save_adapter(tmp_path / "a", state)
    again = load_adapter(tmp_path / "a", EXPECTED)
    assert list(again.tensors) == [spec.name for spec in EXPECTED]
    assert all(np.array_equal(again.tensors[n], value) for n, value in state.tensors.items())


def test_the_order_of_the_schema_is_that_of_numbers_and_a_files_own_order_does_not_matter(tmp_path: Path) -> None:
    source = tiny_source("random:blocks=11,hidden=16,heads=2")  # as text, block 10 would come before block 2
    expected = adapter_specs(source.weights, (2, 10))
    assert [spec.block for spec in expected] == sorted(spec.block for spec in expected)
    save_adapter(tmp_path / "a", AdapterState({spec.name: source.tensor(spec.name) for spec in reversed(expected)}))
    assert list(load_adapter(tmp_path / "a", expected).tensors) == [spec.name for spec in expected]
    assert list(extract(source.load(), (10, 2)).tensors) == [spec.name for spec in expected]


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", bytes(64)])
def test_other_files_are_no_adapters(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(MalformedUpdate):
        load_adapter(tmp_path / "a", EXPECTED)


def test_a_file_larger_than_the_adapter_can_be_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(MalformedUpdate, match="at most"):
        load_adapter(tmp_path / "a", EXPECTED)


def test_an_extracted_adapter_has_the_schema_of_its_model() -> None:
    state = extract(SOURCE.load(), ADAPTER)
    require_matches(state, EXPECTED)
    assert list(state.tensors) == [spec.name for spec in EXPECTED]


def test_an_inserted_adapter_comes_out_again() -> None:
    model = SOURCE.load()
    changed = AdapterState({name: value + 0.5 for name, value in shipped().items()})
    insert(model, changed, expected=EXPECTED)
    assert all(np.array_equal(changed.tensors[n], value) for n, value in extract(model, ADAPTER).tensors.items())


@pytest.mark.parametrize("tensor", [np.zeros(3), np.zeros((4, 4), dtype=np.float32).T[:2], np.float32(1).reshape(())])
def test_a_state_holds_contiguous_float32_only(tensor: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="contiguous float32"):
        AdapterState({"a": tensor})
