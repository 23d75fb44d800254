"""What do the compose files say, with every variable at its default or at a given value?"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parent.parent
FILES: Final = tuple(sorted(path.name for path in ROOT.glob("docker-compose*.yml")))
_VARIABLE: Final = re.compile(r"\$\{(?P<name>\w+)(?:(?P<how>:-|-|:\?|\?)(?P<rest>[^}]*))?\}")


def read(file: str, **given: str) -> dict[str, Any]:
    """Return a compose file as plain values, variables filled in; one that has to be set and is not raises `KeyError`."""
    return yaml.safe_load(_VARIABLE.sub(lambda found: _value(found, given), (ROOT / file).read_text(encoding="utf-8")))


def services(file: str = "docker-compose.yml", **given: str) -> dict[str, dict[str, Any]]:
    """Return the services of a compose file by name."""
    return read(file, **given)["services"]


def _value(found: re.Match[str], given: Mapping[str, str]) -> str:
    name, how, rest = found["name"], found["how"] or "", found["rest"] or ""
    if given.get(name) or (name in given and ":" not in how):
        return given[name]
    if "?" in how:
        raise KeyError(f"{name}: {rest}")
    return rest


def variables(file: str) -> dict[str, set[str]]:
    """Return by variable how a compose file asks for it: nothing, or one of ``:-  -  :?  ?``."""
    found: dict[str, set[str]] = {}
    for match in _VARIABLE.finditer((ROOT / file).read_text(encoding="utf-8")):
        found.setdefault(match["name"], set()).add(match["how"] or "")
    return found
