"""What did each round of a run bring, and what did it cost on the way down and up?"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from rich.table import Table

from hushtune_common.config import Scenario
from hushtune_server.testbed import equal_share
from hushtune_server.testbed.rundir import RunDirectory, read_log

Json = dict[str, Any]

_COORDINATOR = ("round_id", "state", "accepted", "missing", "failed_reason", "solutions", "stopped", "seconds")
_OWNER = ("kept", "reason", "left_out", "perplexity_public_before", "perplexity_public", "emulator_bytes", "revision_bytes")


def gather(
    run: RunDirectory, records: Sequence[Json], *, owner: Mapping[str, Any], referee: Mapping[str, Any], clients: Sequence[str]
) -> list[Json]:
    """Return a line per round from the coordinator's ``records``, what the owner and the referee left, and the clients' logs."""
    decided = {line["round_id"]: line for line in cast(list[Json], owner.get("rounds") or [])}
    fetched = {client: [e for e in read_log(run.log(client)) if e.get("event") == "emulator_verified"] for client in clients}
    scored: Mapping[str, Any] = referee.get("rounds") or {}
    return [
        {
            **{key: record.get(key) for key in _COORDINATOR},
            "owner": {key: decided.get(record.get("round_id"), {}).get(key) for key in _OWNER},
            "plug_in": scored.get(str(record.get("round_id")), {}).get("plug_in"),
            "downlink": _downlink(fetched, cast(int, record.get("round_id"))),
            "uplink_bytes": sum(c.get("bytes_uploaded") or 0 for c in record.get("completions") or ()),
        }
        for record in records
    ]


SHARED_OUT_MAX: Final = 100
"""Rounds of which a report says what every client was assigned, the latest ones; the coordinator's files have all."""

_COST: Final = ("bytes_uploaded", "airtime_s", "train_s", "energy_j", "reason")


def shared_out(scenario: Scenario, records: Sequence[Json]) -> list[Json]:
    """Return for each of the latest rounds what the gate said, what each client was assigned, and what that came to."""
    return [
        {
            "round_id": record.get("round_id"),
            "allocation": record.get("allocation") or {},
            "equal_share": equal_share.of(scenario, record),
            "clients": [_assigned(record, client.id) for client in scenario.clients],
        }
        for record in records[-SHARED_OUT_MAX:]
    ]


def _assigned(record: Mapping[str, Any], client: str) -> Json:
    assignment, completion = (_last(record.get(key), client) for key in ("assignments", "completions"))
    gate = cast(Json, assignment.get("gate") or {})
    return {
        "id": client,
        "gate": gate.get("decision"),
        "gate_reason": gate.get("reason"),
        "gate_numbers": {k: v for k, v in gate.items() if k not in {"decision", "reason"}},
        "assignment": {k: v for k, v in assignment.items() if k not in {"gate", "client", "round_id"}},
        "cost": {key: completion.get(key) for key in _COST} if completion else {},
        "accepted": client in (record.get("accepted") or ()),
        "missing_because": _missing_because(record, client),
    }


def _missing_because(record: Mapping[str, Any], client: str) -> str | None:
    """Return why a round went on without a client; nothing where it did not, or nobody said."""
    reasons: Mapping[str, str] = record.get("reasons") or {}
    return "died during the round" if client in (record.get("died") or ()) else reasons.get(client) or None


def _last(entries: object, client: str) -> Json:
    found = [e for e in cast(list[Json], entries or []) if e.get("client") == client]
    return found[-1] if found else {}


def _downlink(fetched: Mapping[str, Sequence[Json]], round_id: int) -> Json:
    """Return what the clients fetched for a round: in all, and each; who came back after a crash may have fetched twice."""
    mine = {client: [e for e in events if e.get("round_id") == round_id] for client, events in fetched.items()}
    each = {
        client: {"bytes": sum(e.get("bytes_fetched") or 0 for e in events), "revised": any(e.get("revised") for e in events)}
        for client, events in mine.items()
        if events
    }
    return {"bytes": sum(entry["bytes"] for entry in each.values()), "clients": each}


def table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    """Return the rounds of a run for people."""
    caption = "plug-in: perplexity on held-out private text; down and up: bytes of all clients together"
    shown = Table(title="Rounds", title_justify="left", caption=caption, caption_justify="left")
    shown.add_column("round", justify="right")
    shown.add_column("accepted")
    for heading in ("plug-in", "public before", "after", "down MB", "up MB", "s"):
        shown.add_column(heading, justify="right")
    shown.add_column("the model")
    for entry in rounds:
        owner: Mapping[str, Any] = entry["owner"]
        score: Mapping[str, Any] = entry["plug_in"] or {}
        shown.add_row(
            str(entry["round_id"]),
            f"{len(entry['accepted'] or ())} of {len(entry['accepted'] or ()) + len(entry['missing'] or ())}",
            _number(score.get("perplexity"), 1),
            _number(owner["perplexity_public_before"], 1),
            _number(owner["perplexity_public"], 1),
            _number(entry["downlink"]["bytes"], 3, scale=1e-6),
            _number(entry["uplink_bytes"], 3, scale=1e-6),
            _number(entry["seconds"], 1),
            {True: "kept", False: "rolled back", None: "-"}[owner["kept"]],
        )
    return shown


def ending(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Return why the run ended before its last round, nothing when it did not."""
    stopped = rounds[-1].get("stopped") if rounds else ""
    return f"Stopped after round {rounds[-1]['round_id']}: {stopped}" if stopped else ""


def _number(value: object, digits: int, *, scale: float = 1.0) -> str:
    return f"{value * scale:.{digits}f}" if isinstance(value, int | float) else "-"
