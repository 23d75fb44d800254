"""Does the meter say what an emulator gives away? Against counts by hand, and singular values from another routine."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.adapter import Float32
from hushtune_common.model.bundle import Refinement, emulator_tensors, read_bundle, write_bundle
from hushtune_common.model.naming import block_of
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Compress, Drop, Harmonize, Keep, Quant, Share, Slot
from hushtune_common.model.sources import ModelSource
from hushtune_server.owner.emulators.exposure import Exposure, coverage, describe, exposure, exposure_at_most
from tests.models import ADAPTER, tiny_source

Q = "model.layers.2.self_attn.q_proj.weight"
UP = "model.layers.2.mlp.up_proj.weight"


def plan_with(source: ModelSource, *changed: Slot) -> Plan:
    by_index = {slot.index: slot for slot in changed}
    slots = tuple(by_index.get(b, Keep(b)) for b in range(source.block_count))
    return Plan(base=source.base_digest, adapter=ADAPTER, slots=slots, method="by_hand")


def measured(*changed: Slot, trained: Mapping[str, Float32] | None = None) -> Exposure:
    source = tiny_source()
    plan = plan_with(source, *changed)
    refinement = None if trained is None else Refinement(settings="{}", trained=trained)
    return exposure(plan, base=source.weights, shipped=emulator_tensors(source, plan=plan, refinement=refinement))


def sizes(*blocks: int | None) -> int:
    """Return how many numbers these blocks have; none stands for what is outside of them."""
    source = tiny_source()
    return sum(int(np.prod(source.weights.shape(n))) for n in source.names() if block_of(n) in blocks)


WHOLE = sizes(None, *range(6))
slots_of_two = st.sampled_from(
    [
        Keep(2),
        Drop(2),
        Share(2, 1),
        Share(2, 4),
        Harmonize(2, 3),
        Compress(index=2, quant=Quant(bits=8, block=16)),
        Compress(index=2, quant=Quant(bits=4, block=64)),
        Compress(index=2, ranks={"self_attn.q_proj": (0, 1, 7), "mlp.up_proj": (0, 2)}),
        Compress(index=2, channels=(1, 2, 3, 60)),
        Compress(index=2, ranks={"self_attn.v_proj": (0,)}, channels=tuple(range(50)), quant=Quant(bits=4, block=16)),
    ]
)


@pytest.mark.slow
@given(slots_of_two, st.sampled_from([Keep(3), Drop(3), Harmonize(3, 1), Compress(index=3, channels=(0,))]))
def test_what_is_shown_and_what_is_hidden_add_up_to_the_model(second: Slot, third: Slot) -> None:
    found = measured(second, third)
    assert found.verbatim + found.near + found.partial + found.hidden == found.total == WHOLE
    assert min(found.verbatim, found.near, found.partial, found.hidden) >= 0
    assert 0.0 < found.share <= 1.0


def test_kept_blocks_embedding_and_adapter_are_verbatim_and_dropped_or_harmonized_ones_show_nothing() -> None:
    found = measured(Drop(2), Harmonize(3, 4))
    assert found == Exposure(verbatim=sizes(None, 0, 1, 4, 5), near=0, partial=0, hidden=sizes(2, 3))


def test_a_shared_block_shows_its_source_once_and_nothing_of_its_own() -> None:
    assert measured(Share(2, 1)).verbatim == sizes(None, 0, 1, 3, 4, 5)
    assert measured(Share(2, 1), Share(3, 4)).hidden == sizes(2, 3)


def test_integers_of_eight_bits_are_near_and_norms_beside_them_verbatim() -> None:
    found = measured(Compress(index=2, quant=Quant(bits=8, block=16)))
    assert (found.near, found.hidden) == (sizes(2) - 2 * 32, 0)


def test_integers_of_four_bits_show_the_energy_that_they_explain() -> None:
    source, slot = tiny_source(), Compress(index=2, quant=Quant(bits=4, block=64))
    found = coverage(plan := plan_with(source, slot), base=source.weights, shipped=emulator_tensors(source, plan=plan)).tensors[Q]
    matrix = source.tensor(Q).astype(np.float64)
    scales = (np.abs(matrix).max(axis=1, keepdims=True) / 7).astype(np.float16).astype(np.float64)
    coarse = np.rint(matrix / scales) * scales
    assert found.kind == "blurred"
    assert found.share == pytest.approx((matrix * coarse).sum() ** 2 / (matrix**2).sum() / (coarse**2).sum(), abs=1e-5)


def test_neurons_that_stay_show_their_share_of_the_matrices_that_have_them() -> None:
    found = measured(Compress(index=2, channels=tuple(range(16))))
    three_matrices = 3 * 64 * 32
    assert (found.partial, found.hidden) == (three_matrices // 4, three_matrices * 3 // 4)


@pytest.mark.parametrize("components", [(0, 1, 2), (3,), (0, 5, 9)])
def test_singular_components_show_their_share_of_the_squared_singular_values(components: Sequence[int]) -> None:
    source, slot = tiny_source(), Compress(index=2, ranks={"self_attn.q_proj": tuple(components)})
    found = coverage(plan := plan_with(source, slot), base=source.weights, shipped=emulator_tensors(source, plan=plan)).tensors[Q]
    gram = source.tensor(Q).astype(np.float64)
    energies = np.sort(np.linalg.eigvalsh(gram @ gram.T))[::-1]
    assert found.kind == "components"
    assert found.share == pytest.approx(energies[list(components)].sum() / energies.sum(), abs=1e-5)


@pytest.mark.parametrize("factor", [1.04, 1.5, -1.0])
def test_a_trained_tensor_that_is_the_model_s_up_to_a_factor_is_near(factor: float) -> None:
    found = measured(trained={Q: (tiny_source().tensor(Q) * factor).astype(np.float32)})
    assert (found.near, found.hidden) == (32 * 32, 0)


def test_a_trained_tensor_far_from_the_model_s_shows_what_it_explains() -> None:
    true = tiny_source().tensor(Q)
    turned = np.concatenate([-true[:8], true[8:]])
    expected = (1 - 2 * (true[:8] ** 2).sum() / (true**2).sum()) ** 2
    assert measured(trained={Q: turned}).partial == pytest.approx(expected * true.size, abs=1.0)


def test_trained_factors_are_no_components_of_the_model(tmp_path: Path) -> None:
    source, slot = tiny_source(), Compress(index=2, ranks={"self_attn.q_proj": (0, 1)})
    plan = plan_with(source, slot)
    name = Q.replace("weight", "left.weight")
    moved = emulator_tensors(source, plan=plan).tensor(name) * np.float32(1.2)
    path = tmp_path / "bundle.safetensors"
    write_bundle(path, source=source, plan=plan, refinement=Refinement(settings="{}", trained={name: moved}))
    found = coverage(plan, base=source.weights, shipped=read_bundle(path).file)
    assert found.tensors[Q].kind == "blurred"
    assert found.tensors[UP].kind == "verbatim"


@given(slots_of_two)
def test_without_the_model_the_meter_gives_an_upper_bound_on_the_same_total(slot: Slot) -> None:
    source = tiny_source()
    plan = plan_with(source, slot)
    shipped = emulator_tensors(source, plan=plan)
    bound, exact = exposure_at_most(plan, shipped=shipped), exposure(plan, base=source.weights, shipped=shipped)
    assert bound.total == exact.total
    assert bound.share >= exact.share


def test_the_lines_for_people_say_the_share_and_the_bytes() -> None:
    lines = dict(describe(Exposure(verbatim=500, near=0, partial=250, hidden=250)))
    assert lines["exposed"].startswith("75.0% of the model's 1,000 numbers")
    assert lines["  verbatim"] == "50.0%, 2,000 bytes as float32"
    bound = describe(Exposure(verbatim=0, near=600, partial=0, hidden=400, exact=False))
    assert bound == [("exposed", "at most 60.0% of the model's 1,000 numbers (exactly: with the model at hand)")]
