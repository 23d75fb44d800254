"""What was planned for each client's round, and what came of it?

Comparable are: seconds of training on the *modelled* device (operations over the assigned clock; seconds of this machine stand
apart as ``train_wall_s``, because it is not the modelled device), seconds on air of all transmissions, bits of the sealed update,
and the modelled energies of both. The plan's airtime is a mean over retransmissions, so a single round may differ.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

Json = dict[str, Any]

QUANTITIES = ("train_s", "airtime_s", "update_bits", "compute_j", "radio_j")
"""What is both planned and realised; units are in the names."""


def compare(assignment: Mapping[str, Any], *, round_id: object, events: Iterable[Mapping[str, Any]]) -> Json | None:
    """Return planned, realised and deviation in percent of each quantity for one client, from its log.

    ``None`` without a plan. What did not come about is ``None``, as is a deviation from a plan of nothing.
    """
    planned = cast(Json | None, assignment.get("planned"))
    if not planned:
        return None
    of_round = [e for e in events if e.get("round_id") == round_id]
    trained, sealed = _last(of_round, "training_finished"), _last(of_round, "update_sealed")
    # An attempt that was repeated after a restart is told twice, and is one transmission.
    sent = list({e.get("attempt"): e for e in of_round if e.get("event") == "frame_transmitted"}.values())
    bytes_sealed = sealed.get("bytes_sealed")
    realised: Json = {
        "train_s": trained.get("train_modelled_s"),
        "airtime_s": _sum(sent, "airtime_s"),
        "update_bits": None if bytes_sealed is None else 8 * bytes_sealed,
        "compute_j": trained.get("energy_j"),
        "radio_j": _sum(sent, "energy_j"),
    }
    return {
        "planned": {name: planned.get(name) for name in QUANTITIES},
        "realised": realised,
        "deviation_percent": {name: _deviation(planned.get(name), realised[name]) for name in QUANTITIES},
        "train_wall_s": trained.get("train_s"),
        "governor": trained.get("governor"),
    }


def _deviation(planned: object, realised: object) -> float | None:
    if not isinstance(planned, int | float) or not isinstance(realised, int | float) or planned <= 0.0:
        return None
    return 100.0 * (realised / planned - 1.0)


def _last(events: Iterable[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    return next((e for e in reversed(list(events)) if e.get("event") == name), {})


def _sum(events: Iterable[Mapping[str, Any]], field: str) -> float | None:
    found = [e[field] for e in events if isinstance(e.get(field), int | float)]
    return float(sum(found)) if found else None
