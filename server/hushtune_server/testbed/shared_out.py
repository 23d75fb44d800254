"""What was each client assigned in each round, why, and what did that come to?"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from hushtune_common.config import Scenario
from hushtune_server.testbed import equal_share

Json = dict[str, Any]

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
