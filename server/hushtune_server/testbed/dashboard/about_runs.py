"""What does a line say about the run as a whole: processes, rounds, the emulator, settings? By role and event."""

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from hushtune_server.testbed.dashboard.values import Json, chosen, count, number, word

Record = Mapping[str, Any]
_REASONS_MAX: Final = 64
_NAMED_MAX: Final = 8
Change = Callable[[Record, float], Json]


def process_change(record: Record, moment: float, *, role: str) -> Json:
    """Return what a line changes about the process that wrote it."""
    made: Json = {"role": role}
    match record.get("event"):
        case "phase_changed":
            made |= {"phase": word(record.get("phase")) or "", "since": moment, "done": None, "total": None, "ended": None}
        case "transfer_progressed":
            made |= {"what": word(record.get("kind")) or "", **_progress(record, "bytes_done", "bytes_total")}
        case "training_progressed":
            made |= {"what": "steps", **_progress(record, "step", "steps")}
        case "profile_progressed":
            made |= {"what": "blocks", **_progress(record, "done", "total")}
        case "transfer_finished" | "training_finished":
            made |= {"done": None, "total": None}
        case "process_failed" | "process_crashed" | "process_interrupted":
            made |= {"ended": word(record.get("problem")) or "ended", "done": None, "total": None}
        case "scenario_resolved" | "run_resumed":
            made |= {"ended": None, **chosen(record, ("scenario", "run"))}
        case "serving_started":
            made |= chosen(record, ("address",))
        case _:
            pass
    return made


def _progress(record: Record, done: str, total: str) -> Json:
    return {"done": count(record.get(done)), "total": count(record.get(total))}


def _opened(record: Record, moment: float) -> Json:
    return {"opened": moment, **chosen(record, ("rounds",))}


def _closed(record: Record, moment: float) -> Json:
    made: Json = {"closed": moment, **chosen(record, ("accepted", "missing", "failed_reason"))}
    said = record.get("reasons")
    if isinstance(said, Mapping):
        pairs = [(word(client), word(why)) for client, why in list(cast(Mapping[object, object], said).items())[:_REASONS_MAX]]
        made["reasons"] = {client: why for client, why in pairs if client and why}
    return made


def _solved(record: Record, _moment: float) -> Json:
    return {"solved": chosen(record, ("method", "seconds", "objective", "gap", "claim", "order"))}


def _plugged(kept: bool) -> Change:
    return lambda record, _moment: {"plug_in": {"kept": kept, **chosen(record, ("reason", "clients"))}}


def _mean(record: Record, _moment: float) -> Json:
    if record.get("client") != "aggregate":
        return {}
    return {"mean": chosen(record, ("perplexity_public", "perplexity_public_before", "kept", "reason"))}


def _began(_record: Record, moment: float) -> Json:
    return {"opened": moment}


def _ended(record: Record, moment: float) -> Json:
    told = chosen(record, ("accepted", "missing", "failed_reason"))
    missing = cast(list[str], told.get("missing") or [])
    reason = told.get("failed_reason") or None
    made: Json = {"closed": moment, "accepted": len(told.get("accepted") or ()), "missing": missing[:_NAMED_MAX]}
    return made if reason is None else {**made, "failed_reason": reason}


def _scored(record: Record, _moment: float) -> Json:
    if record.get("client") != "aggregate":
        return {}
    pairs = (("before", "perplexity_public_before"), ("after", "perplexity_public"))
    found = ((name, number(record.get(field))) for name, field in pairs)
    return {name: each for name, each in found if each is not None}


def _held(kept: bool) -> Change:
    return lambda _record, _moment: {"kept": kept}


def _emulator(record: Record, _moment: float) -> Json:
    names = ("digest", "bytes_total", "method", "gradient_cosine", "middle_cka", "blocks_kept")
    return {"emulator": chosen(record, names)}


def _exposed(record: Record, _moment: float) -> Json:
    return {"emulator": chosen(record, ("share", "verbatim_share"))}


def _setting(record: Record, _moment: float) -> Json:
    """A setting by its name; ``plug_in of c1`` is that of one client alone."""
    setting, perplexity = word(record.get("setting")), number(record.get("perplexity"))
    if not setting or perplexity is None:
        return {}
    name, _, client = setting.partition(" of ")
    return {"settings_of": {client: perplexity}} if client else {"settings": {name: perplexity}}


CHANGES: Final[Mapping[str, Mapping[str, Change]]] = {
    "owner": {"emulator_published": _emulator, "emulator_renewed": _emulator, "exposure_measured": _exposed},
    "referee": {"setting_evaluated": _setting},
}
"""By role and event: what changes at the root of the state."""

ROUND_CHANGES: Final[Mapping[str, Mapping[str, Change]]] = {
    "coordinator": {
        "round_opened": _opened,
        "round_closed": _closed,
        "round_failed": _closed,
        "assignments_solved": _solved,
    },
    "owner": {
        "plugin_evaluated": _mean,
        "plugin_kept": _plugged(True),
        "plugin_rolled_back": _plugged(False),
    },
}
"""By role and event: what changes in the entry of a round."""

HISTORY_CHANGES: Final[Mapping[str, Mapping[str, Change]]] = {
    "coordinator": {"round_opened": _began, "round_closed": _ended, "round_failed": _ended},
    "owner": {"plugin_evaluated": _scored, "plugin_kept": _held(True), "plugin_rolled_back": _held(False)},
}
"""By role and event: what changes in the line that is kept of a round when all else of it is forgotten."""
