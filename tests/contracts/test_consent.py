"""Does a client refuse whatever would protect its update less than its scenario promises?"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from hushtune_client.consent import require_granted, require_protected
from hushtune_client.telemetry import update_bits
from hushtune_common.adapter import AdapterState
from hushtune_common.codec.pipeline import budget_bytes, make_codec
from hushtune_common.config import CodecConfig, Scenario
from hushtune_common.errors import MalformedUpdate
from hushtune_common.link.secrecy import tap_gain_bound
from hushtune_common.link.wiretap import design, log2_leakage, open_design
from hushtune_common.messages import Assignment, GateDecision, Protection, SecrecyDesign, TapModel, TensorSpec
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Decibel, Watt, to_db
from hushtune_server.coordinator.allocators.equal_share import EqualShare
from hushtune_server.coordinator.allocators.optimised import Optimised
from hushtune_server.coordinator.problems.secrecy import AllocationProblem
from tests.radio import POINTS, qpsk_design, report, scenario

PLAIN = scenario(secrecy={"tap_margin_db": 6.0})


def assigned(where: Scenario) -> Assignment:
    """What an honest coordinator assigns to c1 in a scenario."""
    tap_db = to_db(tap_gain_bound(where, where.clients[0]))
    problem = AllocationProblem.of(where, [report("c1", main_db=-70.0, tap_db=tap_db, update_bits=800_000)])
    (found,) = EqualShare(clock_share=0.5).allocate(problem, seeds=SeedTree(1)).assignments
    assert found.gate.decision is GateDecision.GRANTED, found.gate.reason
    return found


def check(assignment: Assignment, where: Scenario = PLAIN) -> None:
    require_protected(assignment, scenario=where, device=where.clients[0])


def with_design(**changes: Any) -> Assignment:
    honest = assigned(PLAIN)
    assert honest.design is not None
    return replace(honest, design=replace(honest.design, **changes))


@pytest.mark.parametrize("air", [{}, {"fading": "rayleigh_block"}], ids=["white", "fading"])
@pytest.mark.parametrize("fading_design", ["outage", "interleaved"])
@pytest.mark.parametrize("protection", [*Protection])
def test_what_an_honest_coordinator_assigns_is_accepted(air: dict[str, Any], fading_design: str, protection: Protection) -> None:
    secrecy = {"protections": [protection.value], "fading_design": fading_design, "tap_margin_db": 6.0}
    where = scenario(air=air, secrecy=secrecy)
    found = assigned(where)
    assert found.protection is protection
    check(found, where)


@pytest.mark.parametrize("protection", [Protection.KEY, Protection.CRYPTO_ONLY])
def test_a_weaker_protection_than_the_scenario_names_is_refused(protection: Protection) -> None:
    other = assigned(scenario(secrecy={"protections": [protection.value], "tap_margin_db": 6.0}))
    with pytest.raises(MalformedUpdate, match=f"{protection} was assigned"):
        check(other)


def test_more_power_than_the_design_is_made_for_is_refused() -> None:
    honest = assigned(PLAIN)
    with pytest.raises(MalformedUpdate, match="made for a tap"):
        check(replace(honest, power=Watt(honest.power * 1.01)))


def test_a_design_for_a_weaker_tap_than_assumed_is_refused() -> None:
    with pytest.raises(MalformedUpdate, match="made for a tap"):
        check(with_design(snr_tap_design_db=Decibel(-40.0)))


def test_a_design_that_claims_more_than_its_random_bits_give_is_refused() -> None:
    honest = assigned(PLAIN).design
    assert honest is not None
    fewer = {"message_bits": honest.message_bits + 80, "random_bits": honest.random_bits - 80}
    with pytest.raises(MalformedUpdate, match="claimed"):
        check(with_design(**fewer))
    with pytest.raises(MalformedUpdate, match="allows"):
        check(with_design(**fewer, log2_delta=-10.0))  # honest about it, and still too much


@pytest.mark.parametrize("change", [{"tap_model": TapModel.INTERLEAVED, "subbands": 16}, {"subbands": 4}])
def test_a_design_for_another_kind_of_tap_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedUpdate, match="the scenario says"):
        check(with_design(**change))


SCHEMA = tuple(TensorSpec(name=f"w{k}", shape=(300, 100 + k), dtype="F32", block=k) for k in range(3))


def optimised(codec: CodecConfig) -> Assignment:
    """What the optimiser assigns to c1 with an adapter of these tensors where time on air is all that costs."""
    tap_db = to_db(tap_gain_bound(PLAIN, PLAIN.clients[0]))
    asked = report("c1", main_db=-70.0, tap_db=tap_db, update_bits=update_bits(SCHEMA, codec=codec))
    problem = AllocationProblem.of(PLAIN, [replace(asked, train_flops=1e3)])
    costly = structs.replace(problem.allocator, share_min=0.1, time_weight_per_s=1e3)
    quick = structs.replace(problem.owner, plug_in_flops=1e3)
    answer = Optimised("global").allocate(replace(problem, allocator=costly, owner=quick), seeds=SeedTree(1))
    return answer.assignments[0]


def test_the_bytes_that_the_coordinator_grants_are_those_of_the_share_for_this_adapter() -> None:
    found = optimised(CodecConfig())
    assert 0.0 < found.adapter_share < 1.0
    require_granted(found, schema=SCHEMA, codec=CodecConfig())


@pytest.mark.parametrize("more", [-1, 1, 10**6])
def test_other_bytes_than_those_of_the_share_are_refused(more: int) -> None:
    found = optimised(CodecConfig())
    with pytest.raises(MalformedUpdate, match="budget_bytes"):
        require_granted(replace(found, budget_bytes=found.budget_bytes + more), schema=SCHEMA, codec=CodecConfig())


def test_a_share_of_another_adapter_is_refused() -> None:
    with pytest.raises(MalformedUpdate, match="budget_bytes"):
        require_granted(optimised(CodecConfig()), schema=SCHEMA[:2], codec=CodecConfig())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block_size", [16, 64])
def test_the_least_share_on_offer_is_one_that_the_blockwise_codec_fits_whatever_the_adapter(bits: int, block_size: int) -> None:
    codec = CodecConfig(kind="blockwise", bits=bits, block_size=block_size)
    where = structs.replace(PLAIN, codec=codec)
    least = AllocationProblem.of(where, [report("c1", main_db=-70.0, tap_db=-100.0)]).share_least
    noise = SeedTree(1).generator()
    shipped = AdapterState({s.name: np.zeros(s.shape, np.float32) for s in SCHEMA})
    moved = AdapterState({s.name: noise.uniform(-1.0, 1.0, s.shape).astype(np.float32) for s in SCHEMA})
    budget = budget_bytes(SCHEMA, config=codec, share=least)
    assert len(make_codec(codec, shipped=shipped).encode(moved, budget_bytes=budget)) <= budget


def test_a_design_is_believed_to_no_more_than_it_leaks() -> None:
    made = qpsk_design()
    assert -66.0 < log2_leakage(made) <= made.log2_delta == -64.0
    short: SecrecyDesign = replace(made, message_bits=made.message_bits + 8, random_bits=made.random_bits - 8)
    assert log2_leakage(made) < log2_leakage(short)
    assert log2_leakage(replace(made, snr_tap_design_db=Decibel(10.0))) == 0.0
    assert log2_leakage(open_design(POINTS["qpsk-0.825"], codewords=4)) == 0.0
    faded = design(
        POINTS["qpsk-0.825"], codewords=4, snr_tap_db=-8.0, log2_delta=-40.0, tap_model=TapModel.INTERLEAVED, subbands=16
    )
    assert -42.0 < log2_leakage(faded) <= -40.0
    with pytest.raises(ValueError, match="hides anything"):
        log2_leakage(replace(made, snr_tap_design_db=Decibel(1e9)))
