"""Does the reference of settings say all that a scenario can say, and does the check tell where one departs from it?"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hushtune_common import config
from hushtune_common.errors import ConfigError
from hushtune_common.methods import OPTIONS
from hushtune_server import scenario_commands
from hushtune_server.cli import main
from hushtune_server.settings import tables

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {setting.key for table in tables() for setting in table.settings}


def leaves(tree: Mapping[str, Any], *, path: str = "") -> Iterator[str]:
    """The keys of a resolved scenario, which msgspec writes: another way to the same names."""
    for name, value in tree.items():
        found = value if isinstance(value, tuple | list) else [value]
        nested = [part for part in found if isinstance(part, Mapping)]
        yield from (key for part in nested for key in leaves(part, path=f"{path}{name}."))
        if not nested and name != "moves":  # a list of tables has no key of its own
            yield f"{path}{name}"


def every_tree() -> Iterator[Mapping[str, Any]]:
    """Scenarios that together have every table: the shipped ones, each method, and what may be left out."""
    demo = ROOT / "scenarios" / "demo.toml"
    sets = [f"owner.emulator={{method={method!r}}}" for method in OPTIONS]
    sets += ["training.lora={}", "training.dp={}", "owner.fingerprint={}", "owner.aggregation.kind='secure'"]
    sets += ["air.moves=[{client='c1', after_s=1.0, position={x_m=1.0, y_m=1.0}}]"]
    for changed in (*([one] for one in sets[:-2]), [sets[-1]], ["codec.kind='jopeq'", "codec.noise={}", "codec.bits=32"]):
        yield config.to_toml_tree(config.load(demo, overrides=changed))
    yield config.to_toml_tree(config.load(ROOT / "scenarios" / "secure.toml"))


def test_every_setting_is_told_and_nothing_else() -> None:
    found = {key for tree in every_tree() for key in leaves(tree)}
    without_value = {setting.key for table in tables() for setting in table.settings if setting.default == "none"}
    assert found - SETTINGS <= {"air.moves"}
    assert SETTINGS - found <= without_value


def test_every_table_and_every_setting_has_a_meaning() -> None:
    assert [table.path for table in tables() if not table.meaning.endswith(".")] == []
    assert [setting.key for table in tables() for setting in table.settings if not setting.meaning.endswith((".", "..."))] == []


def test_the_page_about_settings_is_up_to_date() -> None:
    page = (ROOT / "docs" / "SETTINGS.md").read_text(encoding="utf-8")
    assert page == scenario_commands.page(), "run: hushtune scenario settings --document docs/SETTINGS.md"


def test_a_default_of_the_reference_is_what_a_scenario_without_the_key_has() -> None:
    whole = config.to_toml_tree(config.load(ROOT / "scenarios" / "demo.toml"))
    told = {s.key: s.default for table in tables() for s in table.settings if s.default is not None and "[" not in table.path}
    for key in (
        "secrecy.log2_delta",
        "coordinator.stragglers.kind",
        "limits.frame_bytes_max",
        "air.fading",
        "air.eavesdropper.y_m",
    ):
        value: object = whole
        for part in key.split("."):
            value = value[part]  # type: ignore[index]  # a tree of tables
        assert tomllib.loads(f"v = {told[key]}")["v"] == value


def test_the_check_names_what_departs_from_the_defaults_and_no_more(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["scenario", "check", str(ROOT / "scenarios" / "demo.toml"), "--set", "coordinator.rounds=3"]) == 0
    said = capsys.readouterr().out
    assert config.load(ROOT / "scenarios" / "demo.toml", overrides=["coordinator.rounds=3"]).digest.hex in said
    departs = [line.split() for line in said.partition("not the default:\n")[2].splitlines()]
    assert ["coordinator.rounds", "3"] in departs
    assert ["owner.emulator.method", '"linear"'] in departs
    assert not any(key.startswith(("limits.", "eavesdropper.", "secrecy.log2")) for key, *_ in departs)


def test_the_resolved_scenario_is_the_same_scenario(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["scenario", "check", str(ROOT / "scenarios" / "demo.toml"), "--resolved"]) == 0
    again = tmp_path / "again.toml"
    again.write_text(capsys.readouterr().out, encoding="utf-8")
    assert config.load(again).digest == config.load(ROOT / "scenarios" / "demo.toml").digest


def test_a_mistake_ends_with_the_code_of_settings_and_names_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenario", "check", str(ROOT / "scenarios" / "demo.toml"), "--set", "air.fadin=none"]) == ConfigError.exit_code
    assert "air.fading" in capsys.readouterr().err


def test_settings_are_found_by_key_and_by_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenario", "settings", "doppler"]) == ConfigError.exit_code
    assert main(["scenario", "settings", "resembles itself"]) == 0
    assert "air.coherence_s" in capsys.readouterr().out
