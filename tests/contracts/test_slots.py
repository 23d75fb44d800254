"""Are slots and plans that cannot be refused by block and field, and hostile ones before they take any memory?"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.messages import Digest
from hushtune_common.model.bundle import Refinement, emulator_tensors, write_bundle
from hushtune_common.model.layout import layout_of
from hushtune_common.model.materialise import EmulatorTensors
from hushtune_common.model.naming import block_of, inner_of, moved
from hushtune_common.model.plan import INDICES_MAX, Plan
from hushtune_common.model.slots import (
    INDEX_MAX,
    Compress,
    Drop,
    Harmonize,
    Keep,
    Quant,
    Share,
    Slot,
    ranges_of,
    ranges_text,
)
from tests.small_families import INNER, Held, family_source, plan_of

LLAMA, GPT2 = family_source("llama"), family_source("gpt2")
HEADER_BYTES = 8

indices = st.sets(st.integers(0, INDEX_MAX - 1) | st.integers(0, 30), min_size=1, max_size=30).map(lambda s: tuple(sorted(s)))
ranks = st.dictionaries(st.sampled_from(["self_attn.q_proj", "mlp.up_proj", "a"]), indices, max_size=3)
quants = st.none() | st.builds(Quant, bits=st.sampled_from((4, 8)), block=st.sampled_from((16, 64, 1024)))


def slots_at(block: int) -> st.SearchStrategy[Slot]:
    return st.one_of(
        st.sampled_from([Keep(block), Drop(block), Share(block, 0)]),
        st.builds(Harmonize, st.just(block), st.integers(1, INDEX_MAX)),
        st.builds(Compress, index=st.just(block), ranks=ranks, channels=st.none() | indices, quant=quants),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    count = draw(st.integers(1, 6))
    slots = (Keep(0), *(draw(slots_at(block)) for block in range(1, count)))
    json_values = st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text("aé😀"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
        max_leaves=8,
    )
    return Plan(
        base=Digest.of(b"base"),
        adapter=(0,),
        slots=slots,
        method=draw(st.text(max_size=5).filter(lambda t: t.isprintable())),
        parameters=draw(st.dictionaries(st.text("xy"), json_values, max_size=3)),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        corpus=draw(st.none() | st.just(Digest.of(b"text"))),
    )


@given(plans())
def test_a_plan_comes_back_from_its_json_as_it_was(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan == Plan.from_json(plan.to_readable_json())
    assert again.to_json() == plan.to_json()
    assert again.digest == plan.digest


@given(indices)
def test_ranges_hold_exactly_their_indices(chosen: tuple[int, ...]) -> None:
    assert ranges_of(ranges_text(chosen)) == chosen


@given(st.text("0123456789-,", max_size=12) | st.text(max_size=6))
def test_indices_have_one_text_only(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert ranges_text(ranges_of(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", ",", "-1", "3-", "03", "5,3", "3,3", "3-3", "3,4", "1-5,6", "9-2", "²", "٣", " 1", f"{INDEX_MAX}", "1--2", "9" * 5000],
)
def test_other_texts_are_no_ranges(text: str) -> None:
    with pytest.raises(ValueError, match=r"range"):
        ranges_of(text)


IMPOSSIBLE_SLOTS: dict[str, tuple[Callable[[], object], str]] = {
    "no rank": (lambda: Harmonize(3, 0), "block 3: rank"),
    "no channel": (lambda: Compress(index=3, channels=()), "block 3: channels"),
    "channels twice": (lambda: Compress(index=3, channels=(1, 1)), "block 3: channels"),
    "negative": (lambda: Compress(index=3, ranks={"a.b": (-1, 2)}), "block 3: ranks of a.b"),
    "unordered": (lambda: Compress(index=3, ranks={"a.b": (2, 1)}), "block 3: ranks of a.b"),
    "three bits": (lambda: Quant(bits=3), "quant"),  # pyright: ignore[reportArgumentType]
    "odd block": (lambda: Quant(bits=4, block=33), "quant"),
}


@pytest.mark.parametrize(("make", "match"), IMPOSSIBLE_SLOTS.values(), ids=IMPOSSIBLE_SLOTS.keys())
def test_a_slot_that_cannot_be_is_refused_by_block_and_field(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


IMPOSSIBLE_PLANS: dict[str, tuple[dict[str, Any], str]] = {
    "share of a share": ({"slots": (Keep(0), Share(1, 0), Share(2, 1))}, "block 2: source: block 1 is itself a Share"),
    "share of itself": ({"slots": (Keep(0), Share(1, 1))}, "block 1: source: block 1 is itself a Share"),
    "share of nothing": ({"slots": (Keep(0), Drop(1), Share(2, 1))}, "block 2: source: block 1 is itself a Drop"),
    "share of a harmonizer": ({"slots": (Keep(0), Harmonize(1, 2), Share(2, 1))}, "block 2: source: block 1 is itself a Harm"),
    "share from outside": ({"slots": (Keep(0), Share(1, 2))}, "block 1: source: block 2 does not exist"),
    "share from before": ({"slots": (Keep(0), Share(1, -1))}, "block 1: source: block -1 does not exist"),
    "compressed adapter": ({"slots": (Compress(index=0),)}, "adapter: .* no Keep for block 0"),
    "adapter outside": ({"adapter": (0, 7)}, "adapter: .* no Keep for block 7"),
    "adapter twice": ({"adapter": (0, 0)}, "adapter"),
    "no adapter": ({"adapter": ()}, "adapter"),
    "no slots": ({"slots": ()}, "slots"),
    "a slot left out": ({"slots": (Keep(0), Keep(2))}, "slots"),
    "too many slots": ({"slots": tuple(Keep(b) for b in range(4097))}, "slots"),
    "seed": ({"seed": 2**63}, "seed"),
    "no number": ({"parameters": {"a": float("nan")}}, "parameters"),
    "an object": ({"parameters": {"a": object()}}, "parameters"),
    "numpy": ({"parameters": {"a": np.int64(1)}}, "parameters"),
    "deep": ({"parameters": json.loads('{"a":' * 50 + "1" + "}" * 50)}, "parameters"),
}


@pytest.mark.parametrize(("changed", "match"), IMPOSSIBLE_PLANS.values(), ids=IMPOSSIBLE_PLANS.keys())
def test_a_plan_that_cannot_be_is_refused_by_block_and_field(changed: dict[str, Any], match: str) -> None:
    possible: dict[str, Any] = {"base": Digest.of(b""), "adapter": (0,), "slots": (Keep(0), Keep(1)), "method": "by_hand"}
    with pytest.raises(ValueError, match=match):
        Plan(**(possible | changed))


UNFITTING: dict[str, tuple[Slot, str]] = {
    "unknown matrix": (
        Compress(index=2, ranks={"mlp.other": (0,)}),
        r"block 2: ranks of mlp\.other: no such matrix; a block has self_",
    ),
    "matrix of another family": (
        Compress(index=2, ranks={"attn.c_attn": (0,)}),
        r"block 2: ranks of attn\.c_attn: no such matrix",
    ),
    "component": (
        Compress(index=2, ranks={"self_attn.k_proj": (0, 8)}),
        r"block 2: ranks of self_attn\.k_proj: component 8 .* are 8",
    ),
    "channel": (Compress(index=2, channels=(0, INNER)), f"block 2: channels: channel {INNER} does not exist; there are {INNER}"),
    "both": (Compress(index=2, ranks={"mlp.down_proj": (0,)}, channels=(0, 1)), r"block 2: ranks of mlp\.down_proj: .* not both"),
    "both up": (
        Compress(index=2, ranks={"mlp.gate_proj": (0,)}, channels=(0,)),
        r"block 2: ranks of mlp\.gate_proj: .* not both",
    ),
}


@pytest.mark.parametrize(("slot", "match"), UNFITTING.values(), ids=UNFITTING.keys())
def test_a_slot_that_does_not_fit_the_model_is_refused_before_a_weight_is_read(slot: Slot, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        EmulatorTensors(Unreadable(held_of(LLAMA).tensors), plan_of(LLAMA, slot))


def test_the_fused_matrix_of_gpt2_has_components_by_its_smaller_side() -> None:
    with pytest.raises(ValueError, match=r"component 16 does not exist; there are 16"):
        EmulatorTensors(GPT2.weights, plan_of(GPT2, Compress(index=1, ranks={"attn.c_attn": (16,)})))


class Unreadable(Held):
    """Weights whose names and shapes are all that may be looked at."""

    def tensor(self, name: str) -> Any:
        raise AssertionError(f"{name} was read")


def held_of(source: Any) -> Held:
    return Held({name: source.tensor(name) for name in source.names()})


STRANGE: dict[str, tuple[Callable[[Held], Held], Slot, str]] = {
    "a block too many": (
        lambda w: w.replacing({"model.layers.5.x.weight": np.ones((2, 2), np.float32)}),
        Keep(2),
        "slots: .* 5, the",
    ),
    "a block too few": (
        lambda w: Held({n: t for n, t in w.tensors.items() if block_of(n) != 3}),
        Keep(2),
        "slots: the plan has 5",
    ),
    "two lists": (lambda w: w.replacing({"classifier.0.weight": np.ones((2, 2), np.float32)}), Keep(2), "slots: .*'classifier.'"),
    "no norm": (
        lambda w: Held({n: t for n, t in w.tensors.items() if "norm" not in n}),
        Harmonize(2, 3),
        "block 2: rank: .*no norm",
    ),
    "two networks": (
        lambda w: w.replacing({f"model.layers.{b}.mlp.more.weight": np.ones((16, 16), np.float32) for b in range(5)}),
        Compress(index=2, channels=(0,)),
        "block 2: ranks, channels and quant: the block is not understood .*more",
    ),
    "unlike blocks": (
        lambda w: w.replacing({"model.layers.2.mlp.up_proj.weight": np.ones((50, 16), np.float32)}),
        Compress(index=2, channels=(0,)),
        "block 2: ranks, channels and quant: its shapes are not those of block 0",
    ),
}


@pytest.mark.parametrize(("change", "slot", "match"), STRANGE.values(), ids=STRANGE.keys())
def test_a_model_that_a_plan_cannot_be_read_onto_is_refused(change: Callable[[Held], Held], slot: Slot, match: str) -> None:
    weights = Unreadable(change(held_of(LLAMA)).tensors)
    with pytest.raises(ValueError, match=match):
        EmulatorTensors(weights, plan_of(LLAMA, slot))


def test_a_plan_that_does_not_fit_makes_no_bundle_and_says_where(tmp_path: Path) -> None:
    plan = plan_of(LLAMA, Compress(index=2, channels=(INNER,)))
    with pytest.raises(MalformedUpdate, match="does not fit the model: block 2: channels"):
        write_bundle(tmp_path / "b", source=LLAMA, plan=plan)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        ("model.layers.3.mlp.up_proj.weight", np.zeros((2, 2), np.float32), "no such tensor of shape"),
        ("model.layers.9.mlp.up_proj.weight", np.zeros((2, 2), np.float32), "no such tensor of shape"),
        ("model.norm.weight", np.full(16, np.nan, np.float32), "finite"),
        ("model.norm.weight", np.zeros(16, np.float64), "float32"),
    ],
    ids=["shape", "block", "nan", "dtype"],
)
def test_what_training_gives_must_fit_the_plan(name: str, tensor: Any, match: str) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(name)}: .*{match}"):
        EmulatorTensors(LLAMA.weights, plan_of(LLAMA), trained={name: tensor})


@pytest.mark.parametrize("slot", [Compress(index=2, quant=Quant(bits=8)), Compress(index=2, ranks={"self_attn.q_proj": (0,)})])
def test_a_model_with_values_that_are_not_finite_is_named_when_it_is_compressed(slot: Slot, tmp_path: Path) -> None:
    name = "model.layers.2.self_attn.q_proj.weight"
    broken = family_source("llama", weights=held_of(LLAMA).replacing({name: np.full((16, 16), np.inf, np.float32)}))
    with pytest.raises(ConfigError, match=f"{re.escape(name)}: holds values that are not finite"):
        write_bundle(tmp_path / "b", source=broken, plan=plan_of(broken, slot))
    assert not list(tmp_path.iterdir())


def test_settings_of_training_are_json() -> None:
    with pytest.raises(ValueError, match="malformed"):
        Refinement(settings="lr=1", trained={})


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("model.layers.27.mlp.up_proj.weight", 27),
        ("h.0.w", 0),
        ("h.03.w", None),
        ("h.٣.w", None),
        ("h.3", None),
        ("lm_head.weight", None),
    ],
)
def test_a_block_is_the_first_number_of_a_name(name: str, block: int | None) -> None:
    assert block_of(name) == block
    if block is not None:
        assert moved(name, to=block, inner=inner_of(name)) == name


def test_a_block_without_a_feed_forward_network_is_no_block_of_ours() -> None:
    with pytest.raises(ConfigError, match=r"model\.source: .*not attention and one feed-forward"):
        layout_of({"attn.q.weight": (4, 4), "norm.weight": (4,)})


def test_a_plan_for_another_number_of_blocks_does_not_fit() -> None:
    plan = plan_of(LLAMA)
    longer = dataclasses.replace(plan, slots=(*plan.slots, Drop(5)))
    with pytest.raises(MalformedUpdate, match="6 slots, the model 5 blocks"):
        emulator_tensors(LLAMA, plan=longer)


def test_a_plan_made_here_is_bounded_like_one_that_arrives() -> None:
    each = tuple(range(INDICES_MAX // 4))
    slots = tuple(Compress(index=b, channels=each) for b in range(1, 6))
    with pytest.raises(ValueError, match="slots: ranks and channels"):
        Plan(base=Digest.of(b""), adapter=(0,), slots=(Keep(0), *slots), method="by_hand")
