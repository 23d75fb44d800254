"""Does each method choose what its publication says, checked by brute force on small cases, and does a fit meet its budget?"""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.config import ModelConfig
from hushtune_common.errors import ConfigError
from hushtune_common.methods import GradotOptions, GreedyOptions, InfluenceOptions, Ranking, WidthOptions
from hushtune_common.model.bundle import emulator_tensors
from hushtune_common.model.plan import Plan, kept_positions
from hushtune_common.model.slots import Compress, Keep, Share
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.crash import clusters
from hushtune_server.owner.emulators.fitting import fit
from hushtune_server.owner.emulators.gradot import gradient_preserving, kept_parts
from hushtune_server.owner.emulators.method import EmulatorRequest, Profile, Scores
from hushtune_server.owner.emulators.planning import METHODS, method_for, request_of
from hushtune_server.owner.emulators.ranking import least_turning, most_apart, most_droppable, needs_of, ranked
from hushtune_server.owner.emulators.shares import SHARES, count_of, largest
from tests.emulators import LAYOUT, options_of, profile_for, request_for, requests, similarity_of
from tests.models import tiny_source

NOWHERE = SeedTree(0)


def uniform(blocks: int, *, ends: int, keep: int, rounding: str = "half_up") -> set[int]:
    """Return the middle blocks that stay."""
    adapter = [*range(ends), *range(blocks - ends, blocks)]
    options = options_of("uniform", drop=blocks - 2 * ends - keep, rounding=rounding)
    return set(METHODS["uniform"](options).plan(Profile(), request_for(blocks, adapter), seeds=NOWHERE).kept) - {*adapter}


def test_positions_are_those_of_the_published_recipe() -> None:
    # OPT-1.3B: 24 blocks, 2 + 2 adapter blocks, 8 of 20 stay; offsite-tuning rounds, FederatedScope takes the floor.
    assert uniform(24, ends=2, keep=8) == {2, 5, 7, 10, 13, 16, 18, 21}
    assert uniform(24, ends=2, keep=8, rounding="floor") == {2, 4, 7, 10, 12, 15, 18, 21}


@pytest.mark.parametrize(("blocks", "keep", "differing"), [(24, 8, 3), (32, 18, 8), (48, 16, 7)])
def test_the_floor_differs_from_rounding_as_often_as_published(blocks: int, keep: int, differing: int) -> None:
    rounded, floor = (uniform(blocks, ends=2, keep=keep, rounding=r) for r in ("half_up", "floor"))
    assert len(rounded - floor) == differing
    if blocks == 24:
        assert len(rounded | floor) == 11


def test_halves_round_up_or_to_even() -> None:
    # 13 of 26: the seventh position is 12.5 exactly.
    assert uniform(30, ends=2, keep=13) - uniform(30, ends=2, keep=13, rounding="half_even") == {15}
    assert uniform(30, ends=2, keep=13, rounding="half_even") - uniform(30, ends=2, keep=13) == {14}
    assert kept_positions(3, of=6) == (0, 3, 5)


@given(st.integers(2, 60), st.integers(1, 30))
def test_rounding_rules_agree_when_an_even_number_stays(of: int, half: int) -> None:
    keep = min(2 * half, of - of % 2)
    assert kept_positions(keep, of=of) == kept_positions(keep, of=of, rounding="half_even")


def test_one_position_is_the_middle_and_none_is_allowed() -> None:
    assert kept_positions(1, of=20) == (9,)
    assert kept_positions(1, of=1) == (0,)
    assert kept_positions(0, of=5) == ()


def test_keeping_more_than_there_is_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot keep 6 of 5"):
        kept_positions(6, of=5)


@given(st.integers(2, 60), st.data())
def test_positions_are_distinct_and_as_even_as_whole_numbers_allow(of: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(2, of))
    positions = kept_positions(keep, of=of)
    assert (positions[0], positions[-1]) == (0, of - 1)
    assert all(abs(p - k * (of - 1) / (keep - 1)) <= 0.5 for k, p in enumerate(positions))
    assert len(set(positions)) == keep


def test_ablation_drops_the_blocks_that_are_missed_least_and_the_lower_of_equals() -> None:
    found = Profile(tokens=1, loss=1.0, ablation_losses={1: 1.3, 2: 1.1, 3: 1.2, 4: 1.1})
    request = request_for(6, [0, 5])
    assert ranked("ablation", found, request, 1) == {2}
    assert ranked("ablation", found, request, 2) == {2, 4}


def test_greedy_drops_the_beginning_of_its_order() -> None:
    found = Profile(loss=1.0, greedy_order=(3, 1), greedy_losses=(1.25, 1.5))
    plan = METHODS["greedy"](GreedyOptions(drop=2)).plan(found, request_for(6, [0, 5]), seeds=NOWHERE)
    assert plan.dropped == (1, 3)
    assert (plan.parameters["greedy_order"], plan.parameters["greedy_rise_nats"]) == ([3, 1], [0.25, 0.5])


def rows_at_most(chosen: tuple[int, ...], bound: int) -> bool:
    """Whether no more than ``bound`` of the blocks are consecutive, counted one by one."""
    return all(not set(range(b, b + bound + 1)) <= set(chosen) for b in chosen)


@given(requests(blocks_max=11), st.integers(1, 4), st.data())
def test_the_least_turning_blocks_are_the_best_of_all_choices(request: EmulatorRequest, bound: int, data: st.DataObject) -> None:
    scores = {b: data.draw(st.integers(0, 5)) / 4 for b in request.middle}
    for drop in range(len(request.middle) + 1):
        allowed = [c for c in combinations(request.middle, drop) if rows_at_most(c, bound)]
        if not allowed:
            assert drop > most_apart(request.middle, adjacent_max=bound)
            with pytest.raises(ConfigError, match=r"owner\.emulator\.drop"):
                least_turning(scores, drop=drop, adjacent_max=bound)
        else:
            best = min(allowed, key=lambda c: (sum(scores[b] for b in c), c))
            assert least_turning(scores, drop=drop, adjacent_max=bound) == set(best)


def test_the_bound_on_neighbours_moves_the_choice() -> None:
    found = Profile(loss=1.0, influences={1: 0.1, 2: 0.1, 3: 0.1, 4: 0.5})
    plans = [
        METHODS["influence"](InfluenceOptions(drop=3, adjacent_max=bound)).plan(found, request_for(6, [0, 5]), seeds=NOWHERE)
        for bound in (3, 2)
    ]
    assert [plan.dropped for plan in plans] == [(1, 2, 3), (1, 2, 4)]


@given(requests(), st.sampled_from(["uniform", "influence", "ablation", "greedy"]), st.integers(0, 99), st.data())
def test_a_ranking_gives_as_many_blocks_of_the_middle_as_asked(
    request: EmulatorRequest, ranking: Ranking, seed: int, data: st.DataObject
) -> None:
    drop = data.draw(st.integers(0, most_droppable(ranking, request)))
    dropped = ranked(ranking, profile_for(request, seed=seed), request, drop)
    assert len(dropped) == drop
    assert dropped <= set(request.middle)
    assert len(needs_of(ranking)) == (ranking != "uniform")


def merged_one_by_one(alike: list[float], adapter: tuple[int, ...], count: int) -> list[list[int]]:
    """The published loop: as long as there are too many clusters, merge the pair of neighbours that is most alike."""
    groups = [[b] for b in range(len(alike) + 1)]
    while len(groups) > count:
        pairs = [k for k in range(len(groups) - 1) if len({*groups[k], *groups[k + 1]} & {*adapter}) <= 1]
        best = max(pairs, key=lambda k: (alike[groups[k][-1]], -k))
        groups[best : best + 2] = [groups[best] + groups[best + 1]]
    return groups


@given(requests(), st.data())
def test_clusters_are_those_of_the_published_loop(request: EmulatorRequest, data: st.DataObject) -> None:
    alike = [data.draw(st.integers(0, 9)) / 9 for _ in range(request.block_count - 1)]
    for count in range(len(request.adapter), request.block_count + 1):
        expected = merged_one_by_one(alike, request.adapter, count)
        assert clusters(alike, adapter=request.adapter, count=count) == expected


def crash_plan(request: EmulatorRequest, alike: list[float], **settings: object) -> Plan:
    count = request.block_count
    values = np.zeros((count, count), dtype=np.float32)
    values[range(count - 1), range(1, count)] = alike
    found = Profile(similarity=similarity_of(values + values.T))
    return METHODS["crash"](options_of("crash", **settings)).plan(found, request, seeds=NOWHERE)


def test_the_nearest_kept_block_stands_in_and_the_upper_one_of_two_or_the_frozen_one() -> None:
    # 1, 2 and 3 are alike: 2 stays. Blocks 1 and 3 then lie between 2 and an adapter block.
    request, alike = request_for(5, [0, 4]), [0.1, 0.9, 0.8, 0.1]
    assert crash_plan(request, alike, drop=2).slots == (Keep(0), Share(1, 2), Keep(2), Share(3, 4), Keep(4))
    frozen = crash_plan(request, alike, drop=2, prefer_frozen=True)
    assert frozen.slots == (Keep(0), Share(1, 2), Keep(2), Share(3, 2), Keep(4))
    assert crash_plan(request, alike, drop=2, share=False).dropped == (1, 3)


def test_a_cluster_at_the_end_of_the_model_is_represented_by_the_outermost_block() -> None:
    plan = crash_plan(request_for(7, [3]), [0.9, 0.9, 0.1, 0.1, 0.9, 0.9], drop=4)
    assert plan.kept == (0, 3, 6)


def dense_scores(preserve: list[float], private: list[float]) -> Scores:
    return Scores(preserve=np.array(preserve, dtype=np.float32), private=np.array(private, dtype=np.float32))


def test_parts_that_keep_gradients_stay_and_parts_that_keep_the_loss_low_go() -> None:
    groups = [dense_scores([1, 2, 3], [0, 0, 0]), dense_scores([2, 2, 2], [5, -1, 1])]
    # Medians are 2 and 0.5; scores are 0.5 1 1.5 and -9 3 -1.
    assert [list(g) for g in gradient_preserving(groups, weight=1.0)] == [[0.5, 1.0, 1.5], [-9.0, 3.0, -1.0]]
    assert kept_parts(groups, share=0.5, weight=1.0, sure=[1, 1]) == [(0,), (0, 1)]
    assert kept_parts(groups, share=0.5, weight=1.0, sure=None) == [(1, 2), (1,)]


@given(requests(), st.sampled_from(SHARES), st.sampled_from(SHARES), st.integers(0, 99))
def test_gradot_keeps_the_asked_shares_and_the_largest_values(
    request: EmulatorRequest, ranks: float, channels: float, seed: int
) -> None:
    options = GradotOptions(attention_keep=ranks, channel_keep=channels, top_keep=0.5)
    plan = METHODS["gradot"](options).plan(profile_for(request, seed=seed), request, seeds=NOWHERE)
    sizes = {m.path: min(m.rows, m.columns) for m in LAYOUT.attention}
    slots = [plan.slots[b] for b in request.middle]
    chosen = [{**{p: tuple(range(n)) for p, n in sizes.items()}, **(s.ranks if isinstance(s, Compress) else {})} for s in slots]
    assert all(set(range(sizes[path] // 2)) <= set(parts) for by_path in chosen for path, parts in by_path.items())
    total = len(slots) * sum(sizes.values())
    assert sum(len(p) for c in chosen for p in c.values()) == max(total // 2, count_of(ranks, total) if total else 0)
    neurons = [s.channels if isinstance(s, Compress) and s.channels is not None else tuple(range(LAYOUT.inner)) for s in slots]
    least = max(len(slots), count_of(channels, LAYOUT.inner * len(slots)) if slots else 0)
    assert sum(map(len, neurons)) == least


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.data())
def test_the_largest_are_those_of_a_stable_sort(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    expected = sorted(sorted(range(len(values)), key=lambda k: -values[k])[:count])
    assert largest(np.array(values, dtype=np.float64), count=count) == tuple(expected)


def test_shares_are_counted_up_and_never_to_nothing() -> None:
    assert [count_of(0.7, 10), count_of(0.25, 1536), count_of(0.001, 10), count_of(0.61, 10)] == [7, 384, 1, 7]
    assert (SHARES[0], SHARES[-1], len(SHARES)) == (1.0, 0.05, 39)


def test_width_keeps_the_neurons_of_largest_norm_in_every_middle_block() -> None:
    norms = {b: np.array([3, 1, 2, 9, 0, 2], dtype=np.float32) for b in (1, 2)}
    plan = METHODS["width"](WidthOptions(channel_keep=0.5)).plan(
        Profile(neuron_norms=norms), request_for(4, [0, 3]), seeds=NOWHERE
    )
    assert plan.slots == (Keep(0), Compress(index=1, channels=(0, 2, 3)), Compress(index=2, channels=(0, 2, 3)), Keep(3))


SOURCE = tiny_source()


def tiny_case() -> tuple[EmulatorRequest, Profile]:
    request = request_of(ModelConfig(source="random:", adapter_blocks=(0, 2, 5)), source=SOURCE)
    return request, profile_like(request)


def profile_like(request: EmulatorRequest) -> Profile:
    """Return a profile of the tiny model's sizes."""
    rng = SeedTree(4).child("fit").generator()
    assert request.layout is not None

    def scores(count: int) -> Scores:
        return Scores(preserve=rng.random(count, dtype=np.float32), private=rng.random(count, dtype=np.float32))

    return Profile(
        ablation_losses={b: float(b) for b in request.middle},
        influences={b: float(b) for b in request.middle},
        replacement_scores={b: float(b) for b in request.middle},
        similarity=similarity_of(rng.random((6, 6), dtype=np.float32)),
        neuron_norms={b: rng.random(request.layout.inner, dtype=np.float32) for b in request.middle},
        channel_scores={b: scores(request.layout.inner) for b in request.middle},
        component_scores={(b, m.path): scores(min(m.rows, m.columns)) for b in request.middle for m in request.layout.attention},
    )


@pytest.mark.slow
@pytest.mark.parametrize("quantise_bits", [0, 4])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_fit_is_the_largest_size_within_the_budget(name: str, quantise_bits: int) -> None:
    request, found = tiny_case()
    thin = {"harmonizer_rank": 4} if name == "linear" else {}  # its default rank is for far wider models
    method = method_for(options_of(name, quantise_bits=quantise_bits, **thin))
    complete = found if name != "greedy" else Profile(greedy_order=request.middle, greedy_losses=(1.0, 1.0, 1.0))
    sizes = [emulator_tensors(SOURCE, plan=m.plan(complete, request, seeds=NOWHERE)).size_bytes for m in method.sizes(request)]
    # Of so small a model a harmonizer takes more than the four-bit block that it replaces.
    assert sizes == sorted(sizes, reverse=True) or (name, quantise_bits) == ("scaleot", 4)
    for budget in {sizes[0] + 1, sizes[len(sizes) // 2], sizes[-1]}:
        fitted = fit(method, found, request, weights=SOURCE.weights, bytes_max=budget)
        size = emulator_tensors(SOURCE, plan=fitted.plan(complete, request, seeds=NOWHERE)).size_bytes
        assert size == next(s for s in sizes if s <= budget)
    with pytest.raises(ConfigError, match=str(min(sizes))):
        fit(method, found, request, weights=SOURCE.weights, bytes_max=min(sizes) - 1)
