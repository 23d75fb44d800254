"""Did a setting appear, vanish or change its default without anybody saying so?"""

from pathlib import Path

import msgspec
import pytest

from hushtune_common import config, tables

GOLDEN = Path(__file__).parent / "vectors" / "scenario-keys.txt"


def lines(section: type[config.Section], *, prefix: str = "") -> list[str]:
    found: list[str] = []
    for field in msgspec.structs.fields(section):
        inner = tables.section_of(field.type)
        if inner is not None:
            found += lines(inner, prefix=f"{prefix}{field.name}.")
        elif field.required:
            found.append(f"{prefix}{field.name} (required)")
        else:
            found.append(f"{prefix}{field.name} = {field.default!r}")
    return found


def test_the_settings_and_their_defaults_are_these(request: pytest.FixtureRequest) -> None:
    text = "\n".join(lines(config.Scenario)) + "\n"
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
