"""How does a file become a scenario, and a scenario plain values again?"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from hushtune_common.config.air import ClientConfig, Position
from hushtune_common.config.meaning import check_aggregation, check_meaning
from hushtune_common.config.scenario import Scenario, map_paths
from hushtune_common.errors import ConfigError
from hushtune_common.methods import METHOD_DEFAULT
from hushtune_common.tables import check_keys, invalid, read_tree


def load(path: Path, *, overrides: Sequence[str] = ()) -> Scenario:
    """Read and check a scenario file; ``overrides`` are ``path.to.key=value`` with TOML values, no value for the default.

    Paths inside the scenario (plans, text files) are resolved against the file's directory. Raises ``ConfigError``.
    """
    return _resolve_paths(parse(read_tree(path, overrides=overrides)), base=path.resolve().parent)


def parse(tree: Mapping[str, Any]) -> Scenario:
    """Turn a decoded TOML document into a ``Scenario``; ``ConfigError`` names the full path of what is wrong."""
    check_keys(tree, Scenario, path="")
    try:
        scenario = msgspec.convert(_with_method(tree), Scenario)
    except msgspec.ValidationError as error:
        raise invalid(error) from error
    check_meaning(scenario)
    return scenario


def with_clients(scenario: Scenario, count: int) -> Scenario:
    """Return the scenario with exactly ``count`` clients: the first ones, or more at rotated places of the known ones."""
    if not 1 <= count <= scenario.limits.clients_max:
        raise ConfigError("clients", f"between 1 and limits.clients_max = {scenario.limits.clients_max}, got {count}")
    known = scenario.clients
    taken = {c.id for c in known}
    free = (name for n in itertools.count(1) if (name := f"c{n}") not in taken)
    extra = [_rotated(known[k % len(known)], quarters=k // len(known), id=next(free)) for k in range(len(known), count)]
    resized = msgspec.structs.replace(scenario, clients=(*known, *extra)[:count])
    check_aggregation(resized)
    return resized


def to_toml_tree(scenario: Scenario) -> dict[str, object]:
    """Return the resolved scenario as plain values, defaults included and ``None`` left out."""
    return cast(dict[str, object], _without_none(msgspec.to_builtins(scenario)))


def _rotated(model: ClientConfig, *, quarters: int, id: str) -> ClientConfig:
    x, y = model.position.x_m, model.position.y_m
    place = [(x, y), (-y, x), (-x, -y), (y, -x)][quarters % 4]
    return msgspec.structs.replace(model, id=id, position=Position(x_m=place[0], y_m=place[1]))


def _with_method(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the document with the default method of making an emulator where it names none."""
    owner = tree.get("owner")
    emulator: Any = cast(Mapping[str, Any], owner).get("emulator") if isinstance(owner, Mapping) else None
    if not isinstance(emulator, Mapping):
        return tree
    named: dict[str, Any] = {"method": METHOD_DEFAULT, **cast(Mapping[str, Any], emulator)}
    return {**tree, "owner": {**cast(Mapping[str, Any], owner), "emulator": named}}


def _resolve_paths(scenario: Scenario, *, base: Path) -> Scenario:
    return map_paths(scenario, lambda path: str((base / path).resolve()))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in cast(dict[str, Any], value).items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_none(v) for v in cast(Sequence[Any], value)]
    return value
