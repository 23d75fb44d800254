"""How a resource problem is written in a file (TOML or JSON), and back: one table, units in the names, one table per client.

::

    bandwidth_mhz = 20.0                      # shared band
    server_tflops = 500.0                     # shared machine of the model owner
    server_energy_w_per_tflops3 = 1e-3        # it draws this times (TFLOP/s)^3
    time_weight_per_s = 1.0                   # cost of a second
    energy_weight_per_j = 0.01                # cost of a joule
    deadline_s = 60.0                         # optional
    codec_bits = 4.0                          # bits per weight of a whole update, told beside shares; default codec.bits
    share_levels = [0.25, 0.5, 1.0]           # optional: the only shares there are
    objective = { kind = "ratio" }            # or difference (price), cost (utility_min), max_min
    utility = "log"                           # or exponential, power, scaling, log_share, linear, table

    [[clients]]
    name = "client-1"
    gain_main_mhz_per_w = 3e6                 # channel gain over the noise density
    gain_tap_mhz_per_w = 1e5
    power_max_w = 0.2
    clock_max_tflops = 2.0
    clock_energy_w_per_tflops3 = 0.5
    update_mbit = 80.0
    train_tflop = 30.0
    plug_in_tflop = 50.0
    utility_weight = 1.0
    utility_shape = 20.0
    train_fixed_share = 0.3                   # from here on with defaults: 0
    start_s = 0.0                             # 0
    share_min = 0.1                           # 0.01
    share_max = 1.0                           # 1
    rate_min_mbps = 0.0                       # 0
    utility_offset = 0.0                      # 0
    utility_values = [0.2, 0.7, 1.0]          # with a table: one value per share level
    clock_levels = [[1.0, 0.6], [2.0, 4.0]]   # optional: pairs of TFLOP/s and W, for every client or for none
"""

import reprlib
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Final, cast

import numpy as np

from hushtune_common.errors import ConfigError
from hushtune_server.coordinator.problems.instance import ClockLevels, Instance
from hushtune_server.coordinator.problems.utility import OBJECTIVE_KINDS, UTILITY_KINDS, Floats, Objective, ObjectiveKind, Utility

_REQUIRED: Final[dict[str, tuple[float, float]]] = {
    "gain_main_mhz_per_w": (1e-6, 1e15),
    "gain_tap_mhz_per_w": (0.0, 1e15),
    "power_max_w": (1e-9, 1e4),
    "clock_max_tflops": (1e-6, 1e5),
    "clock_energy_w_per_tflops3": (1e-12, 1e9),
    "update_mbit": (1e-6, 1e8),
    "train_tflop": (1e-6, 1e9),
    "plug_in_tflop": (1e-9, 1e9),
    "utility_weight": (1e-12, 1e12),
    "utility_shape": (1e-9, 1e9),
}
_OPTIONAL: Final[dict[str, tuple[float, float, float]]] = {
    "train_fixed_share": (0.0, 1.0, 0.0),
    "start_s": (0.0, 1e7, 0.0),
    "share_min": (1e-6, 1.0, 0.01),
    "share_max": (1e-6, 1.0, 1.0),
    "rate_min_mbps": (0.0, 1e6, 0.0),
    "utility_offset": (-1e12, 1e12, 0.0),
}
_SHARED: Final[dict[str, tuple[float, float]]] = {
    "bandwidth_mhz": (1e-6, 1e5),
    "server_tflops": (1e-6, 1e8),
    "server_energy_w_per_tflops3": (1e-15, 1e6),
    "time_weight_per_s": (1e-12, 1e12),
    "energy_weight_per_j": (1e-12, 1e12),
}
_CODEC_BITS: Final = (1e-3, 64.0)
_VALUES: Final = (-1e12, 1e12)
"""Of utilities in a table."""
_CLOCKS: Final = ((1e-6, 1e5), (1e-12, 1e9))
"""TFLOP/s and W of a clock level."""
_GOALS: Final[dict[ObjectiveKind, tuple[str, float, float]]] = {
    "difference": ("price", 1e-30, 1e30),
    "cost": ("utility_min", -1e30, 1e30),
}
"""The one field that an objective has beside its kind."""
_UTILITY_FIELDS: Final = ("utility_weight", "utility_shape", "utility_offset")
_HINTS: Final = {
    "mhz": "the unit is MHz, not Hz",
    "tflops": "the unit is TFLOP/s, not FLOP/s",
    "tflop": "the unit is TFLOP, not FLOP",
    "mbit": "the unit is Mbit, not bit or byte",
    "mbps": "the unit is Mbit/s, not bit/s",
    "w": "the unit is W",
    "s": "the unit is s, not ms",
}


def from_tree(tree: Mapping[str, Any]) -> Instance:
    """Return the problem that a parsed file describes (the form is at the top of this module).

    Raises ``ConfigError`` that names the field, and the client where it is a client's, and says what would be right.
    """
    known = {*_SHARED, "deadline_s", "codec_bits", "share_levels", "objective", "utility", "clients"}
    _refuse_unknown(tree, known, at="")
    clients = _clients(tree)
    levels = _levels(tree)
    kind = tree.get("utility", "log")
    if kind not in UTILITY_KINDS:
        raise ConfigError("utility", f"expected one of {', '.join(UTILITY_KINDS)}, got {_shown(kind)}")
    columns: dict[str, Any] = dict(_columns(clients))
    shared: dict[str, Any] = {name: _number(tree, name, low, high, at="") for name, (low, high) in _SHARED.items()}
    deadline = _number(tree, "deadline_s", 1e-9, 1e9, at="") if "deadline_s" in tree else None
    if "codec_bits" in tree:
        shared["codec_bits"] = _number(tree, "codec_bits", *_CODEC_BITS, at="")
    weight, shape, offset = (columns.pop(name) for name in _UTILITY_FIELDS)
    try:
        utility = Utility(
            kind=kind,
            weight=weight,
            shape=shape,
            offset=offset if offset.any() else None,
            levels=(levels or ()) if kind == "table" else (),
            values=_table(clients, levels) if kind == "table" else None,
        )
        return Instance(
            names=tuple(str(c["name"]) for c in clients),
            **columns,
            **shared,
            utility=utility,
            objective=_objective(tree.get("objective", {"kind": "ratio"})),
            deadline_s=deadline,
            share_levels=levels,
            clock_levels=_clock_levels(clients),
        )
    except ValueError as problem:
        raise ConfigError("problem", str(problem)) from problem


def to_tree(instance: Instance) -> dict[str, Any]:
    """Return the form of a problem; ``from_tree`` of it gives the same numbers."""
    i = instance
    goal = {"kind": i.objective.kind, "price": i.objective.price, "utility_min": i.objective.utility_min}
    tree: dict[str, Any] = {name: getattr(i, name) for name in _SHARED}
    tree |= {"objective": {k: v for k, v in goal.items() if v is not None}, "utility": i.utility.kind}
    tree["codec_bits"] = i.codec_bits
    if i.deadline_s is not None:
        tree["deadline_s"] = i.deadline_s
    if i.share_levels is not None:
        tree["share_levels"] = list(i.share_levels)
    tree["clients"] = [_client(i, k) for k in range(i.clients)]
    return tree


def _client(i: Instance, k: int) -> dict[str, Any]:
    row: dict[str, Any] = {"name": i.names[k]}
    row |= {name: float(getattr(i, name)[k]) for name in (*_REQUIRED, *_OPTIONAL) if name not in _UTILITY_FIELDS}
    offset = 0.0 if i.utility.offset is None else float(i.utility.offset[k])
    row |= {"utility_weight": float(i.utility.weight[k]), "utility_shape": float(i.utility.shape[k]), "utility_offset": offset}
    if i.utility.values is not None:
        row["utility_values"] = i.utility.values[k].tolist()
    if i.clock_levels is not None:
        device = i.clock_levels[k]
        row["clock_levels"] = [list(pair) for pair in zip(device.clock_tflops, device.power_w, strict=True)]
    return row


def _clients(tree: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    rows = tree.get("clients")
    if not isinstance(rows, Sequence) or isinstance(rows, (str, bytes)) or not rows:
        raise ConfigError("clients", "expected at least one table [[clients]]")
    known = {"name", *_REQUIRED, *_OPTIONAL, "utility_values", "clock_levels"}
    for k, row in enumerate(cast(Sequence[Any], rows)):
        if not isinstance(row, Mapping) or not isinstance(row.get("name"), str):
            raise ConfigError(f"clients[{k}]", "expected a table with a name")
        _refuse_unknown(row, known, at=f"clients.{row['name']}.")
    return cast(Sequence[Mapping[str, Any]], rows)


def _columns(clients: Sequence[Mapping[str, Any]]) -> dict[str, Floats]:
    columns: dict[str, Floats] = {}
    for name, (low, high) in _REQUIRED.items():
        columns[name] = np.array([_number(c, name, low, high, at=f"clients.{c['name']}.") for c in clients])
    for name, (low, high, default) in _OPTIONAL.items():
        found = [_number(c, name, low, high, at=f"clients.{c['name']}.") if name in c else default for c in clients]
        columns[name] = np.array(found, dtype=np.float64)
    return columns


def _number(tree: Mapping[str, Any], name: str, low: float, high: float, *, at: str) -> float:
    if name not in tree:
        raise ConfigError(at + name, f"is missing; give a number from {low:g} to {high:g}")
    return _within(tree[name], low, high, at=at + name, hint=_hint(name))


def _within(value: object, low: float, high: float, *, at: str, hint: str = "") -> float:
    number = _finite(value)
    if number is None:
        raise ConfigError(at, f"is {_shown(value)}; give a finite number from {low:g} to {high:g}")
    if not low <= number <= high:
        raise ConfigError(at, f"is {number:g}; give a number from {low:g} to {high:g}{hint}")
    return number


def _finite(value: object) -> float | None:
    """Return a number as a finite float; None for everything else, integers that no float holds among it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if isfinite(value) else None
    except OverflowError:
        return None


def _shown(value: object) -> str:
    """Return how a message shows a value: a few characters, whatever it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        return "an integer of thousands of digits"


def _hint(name: str) -> str:
    unit = next((part for part in reversed(name.split("_per_")[0].split("_")) if part in _HINTS), None)
    return "" if unit is None else f" ({_HINTS[unit]})"


def _refuse_unknown(tree: Mapping[str, Any], known: set[str], *, at: str) -> None:
    for name in tree:
        if name not in known:
            raise ConfigError(f"{at}{name}", f"is not known; known are {', '.join(sorted(known))}")


def _levels(tree: Mapping[str, Any]) -> tuple[float, ...] | None:
    if "share_levels" not in tree:
        return None
    found = _list(tree["share_levels"], at="share_levels", expected="a list of increasing shares within (0, 1]")
    return tuple(_within(x, 1e-6, 1.0, at=f"share_levels[{k}]") for k, x in enumerate(found))


def _list(value: object, *, at: str, expected: str) -> Sequence[object]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        raise ConfigError(at, f"is {_shown(value)}; give {expected}")
    return cast(Sequence[object], value)


def _objective(tree: object) -> Objective:
    goal = cast(Mapping[str, Any], tree) if isinstance(tree, Mapping) else dict[str, Any]()
    kind = goal.get("kind")
    if kind not in OBJECTIVE_KINDS:
        raise ConfigError("objective", f'expected {{ kind = "..." }} with one of {", ".join(OBJECTIVE_KINDS)}')
    _refuse_unknown(goal, {"kind", *(name for name, _, _ in _GOALS.values())}, at="objective.")
    for owner, (name, _, _) in _GOALS.items():
        if name in goal and owner != kind:
            raise ConfigError(f"objective.{name}", f"belongs to the kind {owner}; leave it out with {kind}")
    own: dict[str, float] = {}
    if kind in _GOALS:
        name, low, high = _GOALS[kind]
        own[name] = _number(goal, name, low, high, at="objective.")
    return Objective(kind=kind, **own)


def _table(clients: Sequence[Mapping[str, Any]], levels: tuple[float, ...] | None) -> Floats:
    if levels is None:
        raise ConfigError("share_levels", "is missing; a table of utilities is given at these shares")
    return np.array([_row(c.get("utility_values"), len(levels), at=f"clients.{c['name']}.utility_values") for c in clients])


def _row(values: object, count: int, *, at: str) -> list[float]:
    expected = f"one value for each of the {count} share_levels"
    found = _list(values, at=at, expected=expected)
    if len(found) != count:
        raise ConfigError(at, f"has {len(found)} values; give {expected}")
    return [_within(x, *_VALUES, at=f"{at}[{k}]") for k, x in enumerate(found)]


def _clock_levels(clients: Sequence[Mapping[str, Any]]) -> tuple[ClockLevels, ...] | None:
    missing = [c["name"] for c in clients if "clock_levels" not in c]
    if len(missing) == len(clients):
        return None
    if missing:
        raise ConfigError(f"clients.{missing[0]}.clock_levels", "is missing; give clock levels for every client or for none")
    return tuple(_device(c["clock_levels"], at=f"clients.{c['name']}.clock_levels") for c in clients)


def _device(levels: object, *, at: str) -> ClockLevels:
    pairs: list[list[float]] = []
    for k, level in enumerate(_list(levels, at=at, expected="pairs of TFLOP/s and W that increase")):
        pair = _list(level, at=f"{at}[{k}]", expected="a pair of TFLOP/s and W")
        if len(pair) != 2:
            raise ConfigError(f"{at}[{k}]", f"is {_shown(pair)}; give a pair of TFLOP/s and W")
        pairs.append([_within(x, *_CLOCKS[j], at=f"{at}[{k}][{j}]") for j, x in enumerate(pair)])
    clocks, powers = zip(*pairs, strict=True)
    try:
        return ClockLevels(clock_tflops=clocks, power_w=powers)
    except ValueError as problem:
        raise ConfigError(at, str(problem)) from problem
