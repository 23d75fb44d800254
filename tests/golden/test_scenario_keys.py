"""Did a setting appear, vanish or change its default without anybody saying so?"""

from pathlib import Path

import pytest

from hushtune_server.settings import Table, tables

GOLDEN = Path(__file__).parent / "vectors" / "scenario-keys.txt"


def lines(table: Table) -> list[str]:
    of = f"{table.path[table.path.index('[') :]} " if "[" in table.path else ""
    return [f"{of}{s.key} (required)" if s.default is None else f"{of}{s.key} = {s.default}" for s in table.settings]


def test_the_settings_and_their_defaults_are_these(request: pytest.FixtureRequest) -> None:
    text = "\n".join(line for table in tables() for line in lines(table)) + "\n"
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
