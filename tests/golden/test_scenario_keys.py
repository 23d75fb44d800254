"""Did a setting appear, vanish or change its default without anybody saying so?"""

from pathlib import Path

import msgspec
import pytest

from hushtune_common import config, tables
from hushtune_common.schema import Section

GOLDEN = Path(__file__).parent / "vectors" / "scenario-keys.txt"


def lines(section: type[Section], *, prefix: str = "") -> list[str]:
    found: list[str] = []
    for field in msgspec.structs.fields(section):
        inner = tables.section_of(field.type)
        chosen = [s for s in getattr(field.type, "__args__", ()) if getattr(s, "__struct_config__", None) and _is_kind(s)]
        if chosen:
            for section_ in chosen:
                found += lines(section_, prefix=f"{prefix}{field.name}[{section_.__struct_config__.tag}].")
        elif inner is not None:
            found += lines(inner, prefix=f"{prefix}{field.name}.")
        elif field.required:
            found.append(f"{prefix}{field.name} (required)")
        else:
            found.append(f"{prefix}{field.name} = {field.default!r}")
    return found


def _is_kind(section: type[Section]) -> bool:
    return section.__struct_config__.tag_field == "kind"


def test_the_settings_and_their_defaults_are_these(request: pytest.FixtureRequest) -> None:
    text = "\n".join(lines(config.Scenario)) + "\n"
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
