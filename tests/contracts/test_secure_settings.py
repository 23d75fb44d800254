"""Is a sum that cannot be had, or a setting that nothing would look at, refused by its name before anything runs?"""

from pathlib import Path

import pytest

from hushtune_common import config
from hushtune_common.aggregation import SecureConfig, bits_max, digits_for, reach, threshold, withstood
from hushtune_common.errors import ConfigError
from hushtune_common.messages import TensorSpec
from hushtune_common.secagg.layout import grid_for, payload_id

SCENARIO = """
name = "sums"
seed = 1
[model]
source = "random:blocks=6,hidden=32,heads=4,seed=1"
[data]
private = "txt:private.txt"
public = "txt:public.txt"
[owner.aggregation]
kind = "secure"
[[clients]]
id = "c1"
position = { x_m = 10.0, y_m = 20.0 }
[[clients]]
id = "c2"
position = { x_m = 20.0, y_m = 10.0 }
[[clients]]
id = "c3"
position = { x_m = 30.0, y_m = 10.0 }
"""
SCHEMA = (TensorSpec(name="a.weight", shape=(3, 5), dtype="F32", block=0),)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "scenario.toml"
    file.write_text(SCENARIO, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("override", "where", "hint"),
    [
        ("owner.aggregation.kind='masked'", "owner.aggregation.kind", "use mean or secure"),
        ("owner.aggregation.kind=", "owner.aggregation.kind", "has to be named"),
        ("owner.aggregation.bit=5", "owner.aggregation.bit", "did you mean owner.aggregation.bits?"),
        ("owner.aggregation.bits=1", "owner.aggregation.bits", ">= 2"),
        ("owner.aggregation.members_min=4", "owner.aggregation.members_min", "the scenario has 3 clients"),
        ("owner.aggregation.colluders=1", "owner.aggregation.colluders", "3 members withstand 0, not 1"),
        ("owner.aggregation.neighbours=3", "owner.aggregation.neighbours", "even number from 4"),
        ("owner.aggregation.share=0.9", "coordinator.stragglers", "2 of 3 clients, but 3 are needed"),
        ("coordinator.stragglers.kind='deadline'", "coordinator.stragglers", "1 of 3 clients, but 2 are needed"),
        ("codec.bits=3", "codec", "does nothing when owner.aggregation.kind is secure"),
        ("owner.gate.direction_min=0.5", "owner.gate.direction_min", "does nothing"),
        ("owner.gate.quarantine_count_max=1", "owner.gate.quarantine_count_max", "does nothing"),
        ("coordinator.allocator.share_min=0.5", "coordinator.allocator.share_min", "does nothing"),
        ("coordinator.allocator.utility.kind='measured'", "coordinator.allocator.utility.kind", "does nothing"),
        ("training.lora={}", "training.lora", "no bound that everybody knows"),
    ],
)
def test_what_cannot_be_or_would_do_nothing_is_refused_by_name(path: Path, override: str, where: str, hint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config.load(path, overrides=[override])
    assert (refused.value.field, hint in refused.value.problem) == (where, True), refused.value


def test_bits_that_no_word_has_room_for_name_the_most_there_is_room_for(path: Path) -> None:
    overrides = ["owner.aggregation.bits=23", "owner.aggregation.weights='windows'", "data.train_windows=1000000"]
    with pytest.raises(ConfigError, match=r"owner\.aggregation\.bits: a sum of weights up to 3000000 leaves 10 bits"):
        config.load(path, overrides=overrides)
    assert config.load(path, overrides=["owner.aggregation.bits=10", *overrides[1:]])


def test_asking_for_fewer_clients_than_a_sum_takes_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"owner\.aggregation\.members_min"):
        config.with_clients(config.load(path), 2)


@pytest.mark.parametrize("weight_max", [1, 3, 100, 10**6])
def test_as_many_bits_as_there_is_room_for_are_found_and_no_more(weight_max: int) -> None:
    most = bits_max(weight_max=weight_max)
    assert reach(digits_for(most, weight_max=weight_max), weight_max=weight_max) >= 2 ** (most - 1) - 1
    with pytest.raises(ValueError, match="no word"):
        digits_for(most + 1, weight_max=weight_max)


@pytest.mark.parametrize("members", range(2, 30))
@pytest.mark.parametrize("share", [0.5, 0.6, 2 / 3, 0.8])
def test_of_what_is_withstood_no_two_openings_of_one_member_and_two_honest_survivors_are_left(members: int, share: float) -> None:
    colluders, needed = withstood(members, share=share, degree=0), threshold(members, share=share)
    assert needed > share * members >= needed - 1
    honest = members - colluders
    # To open both secrets, two sets of the honest, each with all colluders, would have to reach the threshold apart.
    assert honest < 2 * (needed - colluders)
    assert needed - colluders >= 2


def test_both_ends_name_payloads_alike_and_other_settings_otherwise(path: Path) -> None:
    ours, other = config.load(path), config.load(path, overrides=["owner.aggregation.bits=8"])
    assert payload_id(ours, SCHEMA) == payload_id(config.load(path), SCHEMA)
    assert payload_id(ours, SCHEMA) != payload_id(other, SCHEMA)
    assert payload_id(ours, SCHEMA).startswith("sum-")
    assert isinstance(ours.owner.aggregation, SecureConfig)


def test_the_bound_of_a_change_is_what_training_can_move_a_weight(path: Path) -> None:
    whole, half = (config.load(path, overrides=[f"owner.aggregation.clip_share={share}"]) for share in (1.0, 0.5))
    (first,), (second,) = grid_for(whole, SCHEMA).tensors, grid_for(half, SCHEMA).tensors
    rates = whole.training.learning_rate * whole.training.epochs * whole.data.train_windows / whole.training.batch_windows
    assert 0.3 * rates < first.clip < 2.0 * rates, "hardly more than the learning rates together"
    assert second.clip == pytest.approx(first.clip / 2)
