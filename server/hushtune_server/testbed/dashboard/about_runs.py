"""What does a line say about the run as a whole: processes, rounds, the emulator, settings? By role and event."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from hushtune_server.testbed.dashboard.values import Json, chosen, count, number, word

Record = Mapping[str, Any]
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
    return {"closed": moment, **chosen(record, ("accepted", "missing", "failed_reason"))}


def _solved(record: Record, _moment: float) -> Json:
    return {"solved": chosen(record, ("method", "seconds", "objective", "gap", "claim", "order"))}


def _plugged(kept: bool) -> Change:
    return lambda record, _moment: {"plug_in": {"kept": kept, **chosen(record, ("reason", "clients"))}}


def _mean(record: Record, _moment: float) -> Json:
    if record.get("client") != "aggregate":
        return {}
    return {"mean": chosen(record, ("perplexity_public", "perplexity_public_before", "kept", "reason"))}


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
