"""Is a hostile plan or bundle refused by its type, and before it takes any memory?"""

import contextlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.errors import MalformedUpdate
from hushtune_common.model.bundle import Refinement, read_bundle, write_bundle
from hushtune_common.model.plan import TEXT_MAX, Plan
from hushtune_common.model.slots import INDEX_MAX, Compress, Harmonize, Quant, Share, ranges_text
from hushtune_common.model.weights import TensorFile
from tests.models import tiny_bundle
from tests.small_families import family_source, plan_of

LLAMA, GPT2 = family_source("llama"), family_source("gpt2")
HEADER_BYTES = 8


def hostile(*, slots: int, text: str, where: str) -> str:
    body = json.loads(plan_of(LLAMA).to_json())
    filled = (
        {"kind": "compress", "channels": text} if where == "channels" else {"kind": "compress", "ranks": {"a": text, "b": text}}
    )
    body["slots"] = [{"kind": "keep", "block": 0}, *({**filled, "block": b} for b in range(1, slots))]
    body["adapter"] = [0]
    return json.dumps(body)


HOSTILE = {
    "channels": hostile(slots=4096, text=f"0-{INDEX_MAX - 1}", where="channels"),
    "ranks": hostile(slots=4096, text=f"0-{INDEX_MAX - 1}", where="ranks"),
    "many ranges": hostile(slots=40, text=ranges_text(range(0, 200_000, 2)), where="ranks"),
    "too long": " " * (TEXT_MAX + 1),
    "deep": plan_of(LLAMA).to_json().replace('"parameters":{}', '"parameters":' + '{"a":' * 60 + "1" + "}" * 60),
    "deepest": plan_of(LLAMA).to_json().replace('"parameters":{}', '"parameters":' + '{"a":' * 50_000 + "1" + "}" * 50_000),
}


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_plan_that_stands_for_too_much_is_refused_before_it_is_expanded(text: str) -> None:
    tracemalloc.start()
    with pytest.raises(MalformedUpdate, match="not a plan"):
        Plan.from_json(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(text) + (1 << 20)


FULL_PLAN = plan_of(
    LLAMA,
    Compress(index=1, ranks={"self_attn.q_proj": (0, 2)}, channels=(0, 1, 5), quant=Quant(bits=8)),
    Share(2, 1),
    Harmonize(3, 2),
)


@pytest.mark.slow
@given(st.data())
def test_a_plan_with_anything_changed_is_read_or_refused(data: st.DataObject) -> None:
    text = bytearray(FULL_PLAN.to_json().encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=2)
            | st.sampled_from([b'"', b"{", b"}", b"[", b"9" * 25, b"-1", b"1e999", b"null", b"\\ud800", b"\xff", b"4294967296"])
        )
    with contextlib.suppress(MalformedUpdate):
        found = Plan.from_json(bytes(text))
        assert Plan.from_json(found.to_json()) == found


@st.composite
def json_changed(draw: st.DrawFn) -> str:
    """Return a plan in which one value is another one of any kind."""
    body = json.loads(FULL_PLAN.to_json())
    target: Any = draw(st.sampled_from([body, *body["slots"]]))
    key = draw(st.sampled_from(sorted(target)))
    target[key] = draw(
        st.none()
        | st.integers()
        | st.text(max_size=3)
        | st.lists(st.integers(0, 9), max_size=3)
        | st.sampled_from(["keep", "share", {}, 1.5, "0-9"])
    )
    return json.dumps(body)


@given(json_changed())
def test_a_plan_with_another_value_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(MalformedUpdate):
        found = Plan.from_json(text)
        assert Plan.from_json(found.to_json()) == found


def rewritten(honest: bytes, metadata: dict[str, str]) -> bytes:
    """Return the bundle with other metadata."""
    length = int.from_bytes(honest[:HEADER_BYTES], "little")
    header = json.loads(honest[HEADER_BYTES : HEADER_BYTES + length])
    header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    return len(text).to_bytes(HEADER_BYTES, "little") + text + honest[HEADER_BYTES + length :]


CHANGED_METADATA = {
    "plan": ["", "{}", HOSTILE["deepest"], "\x00", plan_of(GPT2).to_json()],
    "config": ["", "[]", "1", "nan", "{}", '{"model_type":"t5"}', '{"model_type":[]}', '{"a":' * 50_000, "\x00"],
    "tokenizer": ["", "{}", '{"version":"1.0"}', "[" * 50_000, "null"],
    "format": ["", "pt", "hushtune-bundle/1"],
    "refinement": ["{}", "lr", "[" * 50_000],
    "refinement_digest": ["00", "zz" * 32, "00" * 32],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in CHANGED_METADATA.items() for v in [*values, None]])
def test_a_bundle_with_other_metadata_is_malformed(key: str, value: str | None, tmp_path: Path) -> None:
    path = tmp_path / "b"
    write_bundle(path, source=LLAMA, plan=FULL_PLAN, refinement=Refinement(settings="{}", trained={}))
    honest = path.read_bytes()
    metadata = dict(TensorFile.open(path).metadata)
    genuine = metadata.pop(key)
    path.write_bytes(rewritten(honest, metadata if value is None else {**metadata, key: value}))
    # Other digests and settings are as good as these: what a refinement is called is its owner's word.
    if (key == "refinement_digest" and value == "00" * 32) or value == genuine:
        assert read_bundle(path).refinement_digest is not None
    else:
        with pytest.raises(MalformedUpdate):
            read_bundle(path)


@pytest.mark.slow
@given(data=st.data())
def test_a_bundle_with_any_bytes_of_its_header_changed_is_read_or_malformed(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / "bundle.safetensors"
    honest = bytearray((path if path.exists() else tiny_bundle(folder, 2)).read_bytes())
    length = int.from_bytes(honest[:HEADER_BYTES], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, HEADER_BYTES + length - 1))
        piece = data.draw(st.binary(min_size=1, max_size=2) | st.sampled_from([b'"', b"{", b"}", b"9", b"-", b"e9", b"\\u"]))
        honest[at : at + len(piece)] = piece
    changed = folder / "changed"
    changed.write_bytes(bytes(honest))
    with contextlib.suppress(MalformedUpdate):
        bundle = read_bundle(changed)
        assert bundle.plan.digest
        assert bundle.parameters_per_token > 0
        assert bundle.schema


def test_a_tensor_of_too_many_dimensions_is_malformed(tmp_path: Path) -> None:
    text = json.dumps({"a": {"dtype": "F32", "shape": [1] * 70, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(MalformedUpdate, match="70 dimensions"):
        TensorFile.open(tmp_path / "x")
