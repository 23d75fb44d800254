"""Does the model keep what helps, and is it bit for bit the same after everything else?"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.adapter import AdapterState
from hushtune_common.errors import MalformedUpdate
from hushtune_common.model.adapter import adapter_specs, extract
from hushtune_common.model.language import LanguageModel
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.plugin import Plugin, decide, perplexity
from tests.models import ADAPTER, some_windows, tiny_source

SOURCE = tiny_source()
SCHEMA = adapter_specs(SOURCE.weights, ADAPTER)
WINDOWS = some_windows()


def bench(*, increase_max: float) -> tuple[LanguageModel, Plugin]:
    model = SOURCE.load()
    return model, Plugin(model, schema=SCHEMA, windows=WINDOWS, increase_max=increase_max)


def moved(state: AdapterState, *, by: float) -> AdapterState:
    rng = SeedTree(3).generator()
    return AdapterState({n: (t + by * rng.standard_normal(t.shape)).astype(np.float32) for n, t in state.tensors.items()})


def every_tensor(model: LanguageModel) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.module.state_dict().items()}


def same(a: AdapterState, b: AdapterState) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(np.array_equal(t, b.tensors[n]) for n, t in a.tensors.items())


def test_trying_leaves_every_tensor_of_the_model_bit_for_bit_as_it_was() -> None:
    model, plugin = bench(increase_max=0.5)
    before = every_tensor(model)
    trial = plugin.try_in(moved(plugin.seated, by=0.1))
    assert trial.loss_after != trial.loss_before
    assert every_tensor(model) == before


def test_what_is_kept_is_exactly_what_was_given() -> None:
    model, plugin = bench(increase_max=math.inf)
    given_blocks = moved(plugin.seated, by=0.1)
    trial = plugin.keep(given_blocks)
    assert trial.kept
    assert same(extract(model, ADAPTER), given_blocks)
    assert plugin.loss == trial.loss_after == model.loss(WINDOWS)


def test_what_rises_above_the_limit_is_rolled_back_bit_for_bit() -> None:
    _, scout = bench(increase_max=math.inf)
    candidate = moved(scout.seated, by=0.1)
    found = scout.try_in(candidate)
    rise = found.loss_after - found.loss_before
    model, plugin = bench(increase_max=rise - 1e-6)
    before = every_tensor(model)
    trial = plugin.keep(candidate)
    assert not trial.kept
    assert "public_loss_increase_max_nats" in trial.reason
    assert every_tensor(model) == before
    assert plugin.loss == trial.loss_before


def test_the_untouched_blocks_change_nothing_and_are_kept() -> None:
    _, plugin = bench(increase_max=0.0)
    trial = plugin.keep(plugin.seated)
    assert trial.kept
    assert trial.loss_after == trial.loss_before


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_blocks_that_are_not_finite_are_refused_before_the_model_is_touched(poison: float) -> None:
    model, plugin = bench(increase_max=0.5)
    before = every_tensor(model)
    tensors = {n: t.copy() for n, t in plugin.seated.tensors.items()}
    next(iter(tensors.values())).flat[0] = poison
    with pytest.raises(MalformedUpdate):
        plugin.try_in(AdapterState(tensors))
    assert every_tensor(model) == before


def test_a_model_that_overflows_is_rolled_back() -> None:
    model, plugin = bench(increase_max=math.inf)
    before = every_tensor(model)
    huge = AdapterState({n: np.full_like(t, 3e38) for n, t in plugin.seated.tensors.items()})
    trial = plugin.keep(huge)
    assert (trial.kept, trial.perplexity_after) == (False, math.inf)
    assert every_tensor(model) == before


losses = st.floats(0.0, 1e4) | st.sampled_from([math.nan, math.inf])


@given(before=st.floats(0.0, 20.0), after=losses, better=st.floats(0.0, 1e4), limit=st.floats(0.0, 10.0))
def test_a_lower_loss_is_kept_whenever_a_higher_one_is(before: float, after: float, better: float, limit: float) -> None:
    kept, reason = decide(loss_before=before, loss_after=after, increase_max=limit)
    assert kept == (math.isfinite(after) and after - before <= limit)
    assert kept == (reason == "")
    if kept and better <= after:
        assert decide(loss_before=before, loss_after=better, increase_max=limit)[0]


@given(st.floats(0.0, 1e6) | st.just(math.nan))
def test_perplexity_never_overflows(loss: float) -> None:
    value = perplexity(loss)
    assert value == math.inf or math.log(value) == pytest.approx(loss, abs=1e-9)
