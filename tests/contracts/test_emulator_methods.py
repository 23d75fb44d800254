"""Does every emulator method keep the laws of `EmulatorMethod`, and does every name in the registry work from end to end?"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.adapter import AdapterState
from hushtune_common.clock import SystemClock
from hushtune_common.config import ModelConfig, TrainingConfig
from hushtune_common.errors import ConfigError
from hushtune_common.methods import OPTIONS, EmulatorOptions, Refining
from hushtune_common.model.bundle import read_bundle, write_bundle
from hushtune_common.model.finetune import Unpaced, finetune
from hushtune_common.model.language import EXACT
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Compress, Drop, Harmonize, Keep, Share
from hushtune_common.seeding import SeedTree
from hushtune_common.tables import parse_method
from hushtune_server.owner.emulators.engine import Telling, Workplace, build
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile
from hushtune_server.owner.emulators.planning import METHODS, method_for, request_of, shipped_plan
from hushtune_server.owner.emulators.text import PublicText
from hushtune_server.owner.plugin import Plugin
from tests.emulators import BASE, every_name, options_of, profile_for, request_for, requests, sizes_of
from tests.models import some_windows, tiny_source

names = st.sampled_from(every_name())
bits = st.sampled_from([0, 4, 8])


@st.composite
def methods(draw: st.DrawFn, request: EmulatorRequest) -> EmulatorMethod:
    """Any method at any of its sizes."""
    return draw(st.sampled_from(sizes_of(OPTIONS[draw(names)](), request)))


def planned(method: EmulatorMethod, request: EmulatorRequest, *, seed: int) -> Plan:
    return method.plan(profile_for(request, seed=seed), request, seeds=SeedTree(seed))


@given(requests(), st.integers(0, 99), st.data())
def test_adapter_blocks_are_kept_whichever_they_are(request: EmulatorRequest, seed: int, data: st.DataObject) -> None:
    method = data.draw(methods(request))
    plan = planned(method, request, seed=seed)
    assert plan.adapter == request.adapter
    assert all(plan.slots[b] == Keep(b) for b in request.adapter)
    assert (plan.base, len(plan.slots)) == (request.base, request.block_count)


@given(requests(), st.integers(0, 99), st.data())
def test_equal_arguments_give_equal_plans_and_json_brings_them_back(
    request: EmulatorRequest, seed: int, data: st.DataObject
) -> None:
    method = data.draw(methods(request))
    plan = planned(method, request, seed=seed)
    assert plan == planned(method, request, seed=seed)
    assert Plan.from_json(plan.to_json()) == plan == Plan.from_json(plan.to_readable_json())
    assert json.loads(plan.to_json())["method"] in METHODS


@given(requests(), names, st.integers(0, 99))
def test_the_first_size_keeps_every_block(request: EmulatorRequest, name: str, seed: int) -> None:
    assert planned(sizes_of(OPTIONS[name](), request)[0], request, seed=seed).kept == tuple(request.blocks)


@given(requests(), st.sampled_from(["uniform", "influence", "ablation", "greedy", "crash", "distill", "scaleot"]), st.data())
def test_exactly_the_asked_number_of_blocks_loses_its_weights(request: EmulatorRequest, name: str, data: st.DataObject) -> None:
    sizes = sizes_of(OPTIONS[name](), request)
    count = data.draw(st.integers(0, len(sizes) - 1))
    plan = planned(sizes[count], request, seed=7)
    assert sum(isinstance(slot, Drop | Share | Harmonize) for slot in plan.slots) == count


@given(requests(), st.integers(0, 99), st.data())
def test_what_a_method_does_not_ask_for_decides_nothing(request: EmulatorRequest, seed: int, data: st.DataObject) -> None:
    method = data.draw(methods(request))
    full = profile_for(request, seed=seed)
    fields = {
        "ablation_loss": ("loss", "ablation_losses"),
        "greedy_order": ("loss", "greedy_order", "greedy_losses"),
        "influence": ("loss", "influences"),
        "similarity": ("similarity",),
        "neuron_norms": ("neuron_norms",),
        "gradient_scores": ("loss", "channel_scores", "component_scores"),
        "replacement_scores": ("replacement_scores", "trained"),
    }
    asked = {f for need in method.needs for f in fields[need]} | ({"corpus", "tokens"} if method.needs else set())
    bare = Profile(**{f: getattr(full, f) for f in asked})
    plan = method.plan(full, request, seeds=SeedTree(seed))
    assert replace(method.plan(bare, request, seeds=SeedTree(seed)), corpus=None) == replace(plan, corpus=None)


@given(
    requests(), st.sampled_from(["influence", "ablation", "crash", "distill", "margin", "scaleot"]), st.integers(0, 99), st.data()
)
def test_last_digits_of_a_machine_decide_nothing(request: EmulatorRequest, name: str, seed: int, data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(sizes_of(OPTIONS[name](), request)))
    found = profile_for(request, seed=seed)
    off = SeedTree(seed).child("digits").generator()

    def elsewhere(values: dict[int, float]) -> dict[int, float]:
        return {b: v + float(off.uniform(-1e-7, 1e-7)) for b, v in values.items()}

    assert found.similarity is not None
    other = replace(
        found,
        ablation_losses=elsewhere(dict(found.ablation_losses)),
        influences=elsewhere(dict(found.influences)),
        replacement_scores=elsewhere(dict(found.replacement_scores)),
        similarity=found.similarity * (1 - 1e-7),
    )
    assert method.plan(other, request, seeds=SeedTree(1)) == method.plan(found, request, seeds=SeedTree(1))


@given(requests(), names, bits, st.integers(0, 99))
def test_quantising_changes_nothing_but_how_frozen_blocks_are_stored(
    request: EmulatorRequest, name: str, count: int, seed: int
) -> None:
    options = options_of(name, quantise_bits=count, quantise_block=32)
    method = next(iter(method_for(options).sizes(request)))
    quantised, plain = planned(method, request, seed=seed), planned(sizes_of(OPTIONS[name](), request)[0], request, seed=seed)
    for slot, before in zip(quantised.slots, plain.slots, strict=True):
        if count == 0 or slot.index in request.adapter:
            assert slot == before
        else:
            assert isinstance(slot, Compress)
            assert slot.quant is not None
            assert (slot.ranks, slot.channels, slot.quant.bits, slot.quant.block) == ({}, None, count, 32)
    assert quantised.parameters.get("quantise_bits", 0) == count


def test_a_shared_adapter_block_stays_whole_under_quantising() -> None:
    request = request_for(3, [0, 2])
    plan = planned(method_for(options_of("crash", drop=1, quantise_bits=8)), request, seed=1)
    assert plan.slots == (Keep(0), Share(1, 2), Keep(2)) or plan.slots == (Keep(0), Share(1, 0), Keep(2))


@pytest.mark.parametrize("name", every_name())
def test_a_method_without_its_measurements_is_a_mistake_of_the_caller(name: str) -> None:
    method = METHODS[name](small(name))
    request = request_for(12, [0, 11])
    if method.needs:
        with pytest.raises(ValueError, match=r"the profile has (no|a greedy order of 0)"):
            method.plan(Profile(), request, seeds=SeedTree(0))


@pytest.mark.parametrize("name", every_name())
def test_an_unknown_option_is_refused_where_it_is_read(name: str) -> None:
    with pytest.raises(ConfigError, match="harmonise"):
        parse_method({"method": name, "harmonise": 3})


@pytest.mark.parametrize("name", [n for n in every_name() if {"drop", "replace"} & {*OPTIONS[n].__struct_fields__}])
def test_more_blocks_than_the_middle_has_cannot_go(name: str) -> None:
    option = "replace" if name == "scaleot" else "drop"
    with pytest.raises(ConfigError, match=rf"owner\.emulator\.{option}"):
        planned(METHODS[name](options_of(name, **{option: 5})), request_for(6, [0, 5]), seed=1)


@pytest.mark.parametrize("adapter", [(), (1, 1), (2, 1), (6,)])
def test_impossible_adapter_blocks_name_the_setting(adapter: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"model\.adapter"):
        request_for(6, adapter)


SOURCE = tiny_source()
PUBLIC = PublicText(corpus=BASE, windows=some_windows(24))


def small(name: str, **changed: object) -> EmulatorOptions:
    """Options under which a method trains for two steps at most, and leaves something out of a middle of three blocks."""
    options = OPTIONS[name]
    sizes = {"drop": 2, "replace": 2, "rank": 4, "attention_keep": 0.3, "channel_keep": 0.5, "profile_tokens": 64}
    chosen = {key: value for key, value in sizes.items() if key in options.__struct_fields__}
    training = {"steps": 2, "batch_windows": 2} if issubclass(options, Refining) else {}
    return options_of(name, **{**chosen, **training, **changed})


def workplace(work: Path, *, seed: int = 3) -> Workplace:
    telling = Telling(phase=lambda phase: None, progress=lambda done, passes: None)
    return Workplace(
        source=SOURCE, model=SOURCE.load(), text=PUBLIC, compute=EXACT, seeds=SeedTree(seed), work=work, telling=telling
    )


def tiny_request() -> EmulatorRequest:
    return request_of(ModelConfig(source="random:", adapter_blocks=(0, 2, 5)), source=SOURCE)


@pytest.mark.slow
@pytest.mark.parametrize("quantise_bits", [0, 4])
@pytest.mark.parametrize("name", every_name())
def test_every_method_works_from_the_profile_to_the_plug_in(name: str, quantise_bits: int, tmp_path: Path) -> None:
    place = workplace(tmp_path / "work")
    built = build(small(name, quantise_bits=quantise_bits), tiny_request(), at=place)
    write_bundle(tmp_path / "bundle", source=SOURCE, plan=built.plan, refinement=built.refinement)
    shipped = read_bundle(tmp_path / "bundle")
    returned = finetune(
        tmp_path / "bundle",
        some_windows(2),
        config=TrainingConfig(batch_windows=2),
        compute=EXACT,
        seeds=SeedTree(1),
        governor=Unpaced(clock=SystemClock()),
        report=lambda progress: None,
    )
    changed = [n for n, t in shipped.adapter_numpy().items() if (t != returned.tensors[n]).any()]
    assert {n.split(".")[2] for n in changed} == {"0", "2", "5"}
    plugin = Plugin(place.model, schema=shipped.schema, windows=PUBLIC.windows, increase_max=9.0)
    assert plugin.keep(AdapterState(shipped.adapter_numpy())).loss_after == SOURCE.load().loss(PUBLIC.windows)
    assert plugin.keep(returned).kept


def test_plans_of_the_tiny_model_depend_on_no_seed(tmp_path: Path) -> None:
    plans = [build(small("ablation"), tiny_request(), at=workplace(tmp_path, seed=seed)).plan for seed in (1, 2)]
    assert plans[0] == plans[1]
    assert set(plans[0].parameters["loss_rise_nats"]) == {"1", "3", "4"}


def shipped(tmp_path: Path, **changed: object) -> EmulatorOptions:
    """Write the plan of ``ablation`` without two blocks; return the options that name it."""
    plan = planned(METHODS["ablation"](small("ablation", drop=2)), tiny_request(), seed=1)
    file = tmp_path / "plan.json"
    file.write_text(plan.to_readable_json())
    return small("ablation", **{"plan": str(file), **changed})


def test_a_shipped_plan_is_used_when_it_fits(tmp_path: Path) -> None:
    options = shipped(tmp_path, profile_tokens=999)
    plan = shipped_plan(options, request=tiny_request())
    assert plan == planned(METHODS["ablation"](small("ablation", drop=2)), tiny_request(), seed=1)


@pytest.mark.parametrize(
    "spoil", ["other model", "other drop", "other bits", "other blocks", "other method", "no file", "no plan"]
)
def test_a_shipped_plan_for_something_else_is_refused(tmp_path: Path, spoil: str) -> None:
    options, request = shipped(tmp_path), tiny_request()
    file = tmp_path / "plan.json"
    match spoil:
        case "other model":
            request = replace(request, base=BASE)
        case "other drop":
            options = shipped(tmp_path, drop=1)
        case "other bits":
            options = shipped(tmp_path, quantise_bits=8)
        case "other blocks":
            request = replace(request, adapter=(0, 1, 5))
        case "other method":
            options = options_of("uniform", plan=str(file))
        case "no file":
            file.unlink()
        case _:
            file.write_text("{}")
    with pytest.raises(ConfigError, match=r"owner\.emulator\.plan"):
        shipped_plan(options, request=request)
