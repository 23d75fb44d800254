"""Does a problem survive its file, and is whatever else a file may hold refused by the full name of the field?"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.errors import ConfigError, Infeasible
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators.baselines import even_split
from hushtune_server.coordinator.problems.draws import random_instance
from hushtune_server.coordinator.problems.forms import from_tree, to_tree
from hushtune_server.coordinator.problems.instance import ClockLevels, Instance, evaluate
from hushtune_server.coordinator.problems.utility import OBJECTIVE_KINDS, UTILITY_KINDS, Objective, Utility


def some() -> Instance:
    return random_instance(clients=4, seeds=SeedTree(1))


def full() -> Instance:
    i = replace(some(), deadline_s=500.0, share_levels=(0.1, 0.5, 1.0), objective=Objective(kind="difference", price=0.01))
    values = np.linspace(0.1, 1.2, 12).reshape(4, 3)
    levels = tuple(ClockLevels(clock_tflops=(0.5 * f, float(f)), power_w=(0.2 * f, 1.0 * f)) for f in i.clock_max_tflops)
    table = Utility(kind="table", weight=np.ones(4), shape=np.ones(4), levels=(0.1, 0.5, 1.0), values=values)
    return replace(i, utility=table, clock_levels=levels)


@pytest.mark.parametrize("make", [some, full])
def test_a_problem_survives_its_file_form(make: Callable[[], Instance]) -> None:
    tree = to_tree(make())
    again = from_tree(tree)
    assert to_tree(again) == tree
    first, second = (evaluate(i, even_split(i, share=np.full(4, 0.5))) for i in (make(), again))
    assert second.objective == first.objective


def spoil(tree: dict[str, Any], field: str, value: Any) -> None:
    where = tree["clients"][1] if field.startswith("clients.") else tree
    where[field.rpartition(".")[2]] = value


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("bandwidth_mhz", 20e6, "MHz, not Hz"),
        ("clients.clock_max_tflops", 1e12, "TFLOP/s, not FLOP/s"),
        ("clients.gain_main_mhz_per_w", float("nan"), "finite"),
        ("clients.power_max_w", -0.2, "1e-09"),
        ("clients.update_mbit", 0, "Mbit"),
        ("clients.share_max", 1.5, "to 1"),
        ("clients.train_tflop", "many", "finite number"),
        ("clients.color", "red", "not known"),
        ("utility", "cubic", "log, exponential"),
        ("objective", {"kind": "profit"}, "ratio"),
        ("clients", [], "at least one"),
        ("clients.clock_levels", [[2.0, 1.0]], "every client or for none"),
        ("share_levels", "all", "list"),
        pytest.param("bandwidth_mhz", 10**400, "finite number", id="bandwidth_mhz-beyond-floats"),
        pytest.param("clients.start_s", 10**5000, "thousands of digits", id="start_s-beyond-what-python-prints"),
        ("objective", "ratio", "kind"),
    ],
)
def test_wrong_files_are_refused_with_field_client_and_remedy(field: str, value: Any, remedy: str) -> None:
    tree = to_tree(some())
    spoil(tree, field, value)
    with pytest.raises(ConfigError, match=remedy) as caught:
        from_tree(tree)
    assert field.rpartition(".")[2] in str(caught.value)
    if field.startswith("clients.") and field != "clients.clock_levels":
        assert "client-2" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("objective", {"kind": "difference", "price": "x"}, "objective.price"),
        ("objective", {"kind": "difference", "price": 10**400}, "objective.price"),
        ("objective", {"kind": "difference"}, "objective.price"),
        ("objective", {"kind": "ratio", "price": 1.0}, "objective.price"),
        ("objective", {"kind": "cost", "utility_min": []}, "objective.utility_min"),
        ("objective", {"kind": "cost", "utility_min": 1.0, "floor": 1.0}, "objective.floor"),
        ("share_levels", [0.1, "half", 1.0], "share_levels[1]"),
        ("share_levels", [0.1, 10**400], "share_levels[1]"),
        ("clients.utility_values", [0.1, None, 1.0], "clients.client-2.utility_values[1]"),
        ("clients.utility_values", "abc", "clients.client-2.utility_values"),
        ("clients.utility_values", [0.1], "clients.client-2.utility_values"),
        ("clients.clock_levels", [[1.0, 1.0], 2.0], "clients.client-2.clock_levels[1]"),
        ("clients.clock_levels", [[1.0, 1.0], [2.0, "x"]], "clients.client-2.clock_levels[1][1]"),
        ("clients.clock_levels", [[1.0, 1.0, 1.0]], "clients.client-2.clock_levels[0]"),
        ("clients.clock_levels", [[2.0, 1.0], [1.0, 2.0]], "clients.client-2.clock_levels"),
    ],
)
def test_a_wrong_value_inside_of_a_field_is_named_by_its_whole_path(field: str, value: Any, named: str) -> None:
    tree = to_tree(full())
    spoil(tree, field, value)
    with pytest.raises(ConfigError) as caught:
        from_tree(tree)
    assert caught.value.field == named


KEYS = st.sampled_from([*to_tree(full()), *to_tree(full())["clients"][0], "kind", "price", "utility_min"]) | st.text(max_size=3)
ODD = [float("nan"), float("-inf"), 1e308, 10**400, *OBJECTIVE_KINDS, *UTILITY_KINDS]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(ODD) | st.text(max_size=5)
JSON = st.recursive(
    SCALARS, lambda part: st.lists(part, max_size=4) | st.dictionaries(KEYS, part, max_size=6) | st.lists(part).map(tuple)
)


def is_a_problem_or_a_wrong_setting(tree: Any) -> None:
    with suppress(ConfigError, Infeasible):
        assert isinstance(from_tree(tree), Instance)


@pytest.mark.slow
@given(tree=st.dictionaries(KEYS, JSON, max_size=12))
def test_any_table_is_a_problem_or_a_wrong_setting(tree: dict[str, Any]) -> None:
    is_a_problem_or_a_wrong_setting(tree)


@pytest.mark.slow
@given(data=st.data(), make=st.sampled_from([some, full]))
def test_a_good_table_with_anything_in_some_places_is_a_problem_or_a_wrong_setting(
    data: st.DataObject, make: Callable[[], Instance]
) -> None:
    tree = to_tree(make())
    for _ in range(data.draw(st.integers(1, 4))):
        at: Any = tree
        while True:  # ends: the tree is finite, and every step goes down
            key = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else list(range(len(at)))))
            if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.booleans()):
                break
            at = at[key]
        at[key] = data.draw(JSON)
    is_a_problem_or_a_wrong_setting(tree)


def test_a_missing_number_is_asked_for() -> None:
    tree = to_tree(some())
    del tree["clients"][2]["train_tflop"]
    with pytest.raises(ConfigError, match=r"clients\.client-3\.train_tflop: is missing"):
        from_tree(tree)
